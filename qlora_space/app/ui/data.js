// The data panel: fix buttons that set a field, the movable length limit, single tokens of the X-ray.
(() => {
  const KEYS_PAUSE_MS = 700;
  const percent = (share) => {
    const value = 100 * share;
    const nearAnEnd = (value > 0 && value < 0.95) || (value > 99 && value < 99.95);
    return value.toFixed(nearAnEnd ? 1 : 0) + " %";
  };
  // Sorted numbers: how many are above the limit.
  const above = (lengths, limit) => {
    let low = 0;
    let high = lengths.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lengths[middle] <= limit) low = middle + 1;
      else high = middle;
    }
    return lengths.length - low;
  };

  const showShare = (range) => {
    const figure = range.closest(".histogram");
    figure.sorted ||= JSON.parse(figure.dataset.lengths);
    const limit = Math.max(16, Number(range.value));
    const longer = above(figure.sorted, limit);
    const share = longer ? percent(longer / figure.sorted.length) : "no example";
    const fate = longer ? figure.dataset.fate : figure.dataset.fate.split(" and ")[0];
    figure.style.setProperty("--at", (100 * limit) / range.max + "%");
    range.setAttribute("aria-valuetext", `${limit.toLocaleString("en-US")} tokens`);
    figure.querySelector("output").textContent =
      `Longest example ${limit.toLocaleString("en-US")} tokens: ${share} ${longer ? "are" : "is"} ${fate}.`;
    return limit;
  };

  const flash = (name) => {
    const field = document.querySelector("#field-" + name.replaceAll("_", "-"));
    field?.classList.add("just-set");
    setTimeout(() => field?.classList.remove("just-set"), 4000);
  };

  const setter = (trigger) => (field, to) => {
    trigger("click", { set: field, to });
    setTimeout(() => flash(field), 300);
  };
  const fixes = (element, trigger) => {
    const set = setter(trigger);
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-set]");
      if (!button || button.disabled) return;
      button.disabled = true;
      set(button.dataset.set, button.dataset.to);
    });
  };

  const data = (element, trigger) => {
    let pause, byKey = false, focusOn = "", isMapping;
    const set = setter(trigger);
    fixes(element, trigger);
    element.addEventListener("click", (event) => {
      const mapping = event.target.closest(".mapping > summary")?.parentElement;
      if (mapping) isMapping = !mapping.open;
    });
    element.addEventListener("keydown", (event) => (byKey = event.target.type === "range"));
    element.addEventListener("pointerdown", () => (byKey = false));
    element.addEventListener("input", (event) => {
      if (event.target.type !== "range") return;
      showShare(event.target);
      clearTimeout(pause);
    });
    element.addEventListener("change", (event) => {
      const box = event.target;
      if (box.dataset.part) {
        const boxes = [...element.querySelectorAll("select[data-part]")];
        isMapping = true;
        focusOn = `select[data-part="${CSS.escape(box.dataset.part)}"]`;
        set("columns", JSON.stringify(Object.fromEntries(boxes.map((each) => [each.dataset.part, each.value]))));
      } else if (box.type === "range") {
        clearTimeout(pause);
        // Arrow keys change it at every press: the form is updated when they pause.
        pause = setTimeout(() => {
          focusOn = document.activeElement === box ? ".histogram input" : "";
          set("max_length", String(showShare(box)));
        }, byKey ? KEYS_PAUSE_MS : 0);
      }
    });
    // After an update the mapping stays open or closed, and the focus stays where it was.
    new MutationObserver(() => {
      const mapping = element.querySelector(".mapping");
      if (mapping && isMapping !== undefined) mapping.open = isMapping;
      const control = focusOn && element.querySelector(focusOn);
      if (!control || document.activeElement !== document.body) return;
      focusOn = "";
      control.focus({ preventScroll: true });
    }).observe(element, { childList: true, subtree: true });
  };

  // Where each token of a row begins and ends in its text nodes. Labels between tokens do not count.
  const mapped = new WeakMap();
  const mapOf = (box) => {
    if (mapped.has(box)) return mapped.get(box);
    const nodes = [];
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, (node) => {
      if (node.nodeName === "EM") return NodeFilter.FILTER_REJECT;
      return node.nodeType === Node.TEXT_NODE ? NodeFilter.FILTER_ACCEPT : NodeFilter.FILTER_SKIP;
    });
    let start = 0;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      nodes.push({ node, start });
      start += node.length;
    }
    let end = 0;
    const tokens = box.dataset.tokens.split(" ").map((each) => {
      const [id, size] = each.split(":").map(Number);
      return { id, start: end, end: (end += size) };
    });
    const map = { nodes, tokens };
    mapped.set(box, map);
    return map;
  };
  const last = (list, isBefore) => {
    let low = 0;
    let high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isBefore(list[middle])) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  };
  const rangeOf = ({ nodes }, from, to) => {
    const range = document.createRange();
    const first = nodes[Math.max(0, last(nodes, (each) => each.start <= from))];
    const final = nodes[Math.max(0, last(nodes, (each) => each.start < to))];
    range.setStart(first.node, from - first.start);
    range.setEnd(final.node, to - final.start);
    return range;
  };
  const kindOf = (node) => {
    const run = node.parentElement.closest("b, i, del");
    const kind = { B: "learned", DEL: "cut off" }[run?.nodeName] || "read only";
    return run?.classList.contains("special") ? kind + ", special" : kind;
  };

  const show = (box, index) => {
    const map = mapOf(box);
    const token = map.tokens[index];
    if (!token || box.token === index) return;
    box.token = index;
    const words = box.parentElement.querySelector(".token-at");
    const at = `token ${index + 1} of ${map.tokens.length.toLocaleString("en-US")}, id ${token.id}`;
    if (token.start === token.end) {
      CSS.highlights?.delete("token");
      words.textContent = at + ", part of the next character";
      return null;
    }
    const range = rangeOf(map, token.start, token.end);
    CSS.highlights?.set("token", new Highlight(range));
    const text = range.toString().replaceAll("\n", "").replaceAll(" ", "·");
    words.textContent = `${at}, “${text}”, ${kindOf(range.startContainer)}`;
    return range;
  };
  const pointed = (event, box) => {
    const at = document.caretPositionFromPoint?.(event.clientX, event.clientY);
    const old = at ? null : document.caretRangeFromPoint?.(event.clientX, event.clientY);
    const node = at?.offsetNode ?? old?.startContainer;
    const offset = at?.offset ?? old?.startOffset;
    const map = mapOf(box);
    const found = map.nodes.find((each) => each.node === node);
    if (!found) return;
    // The caret goes to the nearer side of a letter; the token is the one before a caret at its end.
    const position = found.start + Math.min(offset, node.length - 1);
    show(box, last(map.tokens, (each) => each.start <= position));
  };

  const xray = (element) => {
    element.addEventListener("pointermove", (event) => {
      const box = event.target.closest(".tokens");
      if (box) pointed(event, box);
    });
    element.addEventListener("click", (event) => {
      const box = event.target.closest("[data-cut]")?.closest(".xray-row").querySelector(".tokens");
      if (!box) return;
      box.scrollTop += box.querySelector(".cut-here").getBoundingClientRect().top - box.getBoundingClientRect().top - 60;
    });
    element.addEventListener("keydown", (event) => {
      const box = event.target.closest(".tokens");
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!box || !step) return;
      event.preventDefault();
      const range = show(box, Math.max(0, (box.token ?? -1) + step));
      if (!range) return;
      const token = range.getBoundingClientRect();
      const frame = box.getBoundingClientRect();
      if (token.bottom > frame.bottom) box.scrollTop += token.bottom - frame.bottom + 8;
      if (token.top < frame.top) box.scrollTop -= frame.top - token.top + 8;
    });
  };

  Object.assign(window.qlora, { data, fixes, xray });
})();
