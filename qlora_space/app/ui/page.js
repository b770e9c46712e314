// The URL, whether the server is there, and crosshair and zoom of the charts.
(() => {
  const query = () => new URLSearchParams(location.search);
  const go = (params) => {
    const text = params.toString();
    if (text !== query().toString()) history.pushState(null, "", text ? "?" + text : location.pathname);
  };
  // Hide the form at once when the URL names a run or an adapter, until that is there.
  if (["run", "adapter", "base", "revision", "prompt"].some((name) => query().get(name))) document.documentElement.classList.add("opening");

  // The frame is put together out of sight: what moves then is not seen.
  const root = document.documentElement;
  root.classList.add("starting");
  const started = () => root.classList.remove("starting");
  setTimeout(started, 4000);

  // On a phone the list of runs covers the page: it stays folded until it is opened. A window that was narrow for a
  // while gets back what it had.
  let isForWidth = false;
  const fold = () => {
    document.documentElement.classList.add("folded");
    if (innerWidth > 768) return;
    document.querySelector("#sidebar.open .toggle-button")?.click();
  };
  matchMedia("(max-width: 768px)").addEventListener("change", (narrow) => {
    if (narrow.matches) {
      isForWidth = document.querySelector("#sidebar.open") !== null;
      fold();
    } else if (isForWidth) {
      document.querySelector("#sidebar:not(.open) .toggle-button")?.click();
    }
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#sidebar [data-pick], #new-run-button")) fold();
  });

  let spokeAt = 0; // when the open run's stream brought something
  let isSure = false; // whether it comes from the server that this page is of
  window.qlora = {
    fold,
    started: () => setTimeout(started, 120), // the list of runs has slid in by then
    opened: () => document.documentElement.classList.remove("opening"),
    streamSpoke: () => (spokeAt = Date.now()),
    streamBroke: () => (isSure = false),
    setAddress(address) {
      const params = query();
      const wanted = new URLSearchParams(address || "");
      if (params.get("run") === wanted.get("run") && wanted.has("run")) return;
      ["run", "view", "of", "adapter", "base", "revision", "prompt", "like"].forEach((name) => params.delete(name));
      wanted.forEach((value, name) => params.set(name, value));
      go(params);
      qlora.watch(wanted.get("run") ?? "");
      window.scrollTo(0, 0);
    },
    // Which comparison of a run is shown: Python is told when it opens the page.
    setComparison(id) {
      const params = query();
      if (params.get("view") !== "compare") return;
      if (id) params.set("of", id);
      else params.delete("of");
      go(params);
    },
    withComparison(address) {
      const params = query();
      const isHere = params.get("run") === new URLSearchParams(address).get("run");
      return isHere && params.get("of") ? `${address}&of=${encodeURIComponent(params.get("of"))}` : address;
    },
    setPage(page) {
      const params = query();
      if (!params.has("run")) return;
      params.set("view", page);
      if (page !== "compare") params.delete("of");
      go(params);
    },
  };
  // The page is only a viewer: when its server is gone it shows a banner, and reloads when the server is back.
  let serving = null;
  const banner = (words) => {
    let node = document.querySelector("#no-server");
    if (!words) return node?.remove();
    node ??= document.body.appendChild(Object.assign(document.createElement("div"), { id: "no-server" }));
    node.setAttribute("role", "status");
    node.textContent = words;
  };
  const askServer = async () => {
    let found = null;
    try {
      const answer = await fetch("gradio_api/app_id", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      found = answer.ok ? (await answer.json()).app_id : null;
    } catch {}
    isSure = found !== null;
    if (!isSure) {
      banner("The page has lost its server. Training goes on without it; this page comes back by itself.");
    } else {
      const wasLost = document.querySelector("#no-server");
      if (query().has("run") && (wasLost || (serving !== null && serving !== found))) location.reload();
      serving = found;
      banner("");
    }
  };
  const checkServer = async () => {
    if (!isSure || Date.now() - spokeAt > 1500) await askServer();
    setTimeout(checkServer, 3000);
  };
  setTimeout(checkServer, 3000);

  window.addEventListener("popstate", () => location.reload());

  // Gradio shows the name of a file that it does not take as HTML: names are made plain before it sees them.
  addEventListener(
    "change",
    ({ target }) => {
      if (target.type !== "file") return;
      const plain = new DataTransfer();
      for (const file of target.files) {
        const name = file.name.replace(/[^\p{L}\p{N}. _-]+/gu, "-");
        plain.items.add(name === file.name ? file : new File([file], name, { type: file.type }));
      }
      target.files = plain.files;
    },
    true,
  );

  // Suggestions are requested when typing pauses, and not by keys that move in the list: new choices would
  // lose the marked one, and Enter would take the typed text instead.
  let typing;
  addEventListener(
    "keyup",
    (event) => {
      const box = event.target;
      if (!event.isTrusted || !box.closest?.("#field-dataset, #field-base")) return;
      event.stopImmediatePropagation();
      clearTimeout(typing);
      if (event.key.length > 1 && !["Backspace", "Delete"].includes(event.key)) return;
      const again = () => box.dispatchEvent(new KeyboardEvent("keyup", { key: event.key, bubbles: true }));
      typing = setTimeout(again, 250);
    },
    true,
  );

  const clear = () => document.querySelectorAll(".crosshair").forEach((node) => node.remove());
  const nearest = (points, left) =>
    points.reduce((best, p) => (Math.abs(p[1] - left) < Math.abs(best[1] - left) ? p : best));
  const mark = (plot, left) => {
    const { unit, lines } = JSON.parse(plot.dataset.hover);
    const found = lines.map((l) => [l, nearest(l.at, left)]);
    if (!found.length) return;
    // The line with the most points says which step is hovered; another one may have been measured at other steps.
    const [, main] = found.reduce((most, each) => (each[0].at.length > most[0].at.length ? each : most));
    const line = document.createElement("div");
    line.className = "crosshair";
    line.style.left = main[1] + "%";
    const tip = document.createElement("div");
    tip.className = "tip" + (main[1] > 60 ? " tip-left" : "");
    const words = found.map(([l, p]) => `${l.name}: ${p[3]}${unit}${p[0] === main[0] ? "" : ` at step ${p[0]}`}`);
    tip.textContent = [`step ${main[0]}`, ...words].join("\n");
    line.append(tip);
    plot.append(line);
  };
  const leftIn = (plot, event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width));
  };
  const plots = () => document.querySelectorAll(".plot[data-hover]");
  document.addEventListener("pointermove", (event) => {
    const plot = event.target.closest?.(".plot[data-hover]");
    clear();
    if (plot) plots().forEach((each) => mark(each, leftIn(plot, event)));
  });

  // Zoom: the steps between press and release go into the field that the keyboard uses, and Python draws them.
  const showSteps = (text) => {
    const field = document.querySelector("#steps-shown :is(input, textarea)");
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  // The charts are drawn anew while one drags: the one that was pressed is known by its place among them.
  let pressed = null;
  const zoomable = () => [...document.querySelectorAll("#charts-body .plot[data-hover]")];
  const drawSelection = () => {
    document.querySelector(".selection")?.remove();
    const plot = pressed && zoomable()[pressed.index];
    if (!plot) return;
    const box = document.createElement("div");
    box.className = "selection";
    box.style.left = Math.min(pressed.from, pressed.to) + "%";
    box.style.width = Math.abs(pressed.to - pressed.from) + "%";
    plot.append(box);
  };
  document.addEventListener("pointerdown", (event) => {
    const index = event.button === 0 ? zoomable().indexOf(event.target.closest?.(".plot")) : -1;
    if (index < 0) return;
    const plot = zoomable()[index];
    const left = leftIn(plot, event);
    pressed = { index, from: left, to: left, steps: JSON.parse(plot.dataset.hover).steps };
    event.preventDefault();
  });
  document.addEventListener("pointermove", (event) => {
    const plot = pressed && zoomable()[pressed.index];
    if (!plot) return;
    pressed.to = leftIn(plot, event);
    drawSelection();
  });
  const release = (isDone) => {
    const done = pressed;
    pressed = null;
    drawSelection();
    if (!isDone || !done || Math.abs(done.to - done.from) <= 2) return;
    const [first, last] = done.steps;
    const ends = [done.from, done.to].map((left) => Math.round(first + ((last - first) * left) / 100));
    showSteps(ends.sort((a, b) => a - b).join("-"));
  };
  document.addEventListener("pointerup", () => release(true));
  document.addEventListener("pointercancel", () => release(false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && release(false));
  document.addEventListener("dblclick", (event) => event.target.closest?.("#charts-body .plot") && showSteps(""));
})();
