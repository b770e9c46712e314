// Runs as they happen: the open run comes as a stream of changes, the list of runs by small requests.
(() => {
  const FIRST_MS = 6000; // a proxy that has sent nothing by then holds streams back
  const SILENT_MS = 40000; // the server says something every 15 seconds
  const RETRY_MS = 3000;
  const POLL_MS = 2000;
  const LIST_MS = 3000; // and one second for which the server may keep a list
  const LOADING = '<div class="empty"><strong>Loading runs …</strong><span></span></div>';
  const NO_LOG = '<div class="empty"><strong>Nothing yet</strong><span></span></div>';

  // What pieces of the page show, by id. Gradio makes elements anew when they appear: they are filled again.
  const wanted = new Map();
  const filled = new Map();
  const place = (id) => document.getElementById(id)?.querySelector(".prose");
  const ask = (id) => place(id)?.dispatchEvent(new Event("ask"));

  const isOurs = (node) => node.classList?.contains("crosshair") || node.classList?.contains("selection");
  const morph = (old, fresh) => {
    const before = [...old.childNodes].filter((node) => !isOurs(node));
    [...fresh.childNodes].forEach((node, i) => {
      const now = before[i];
      if (!now) old.append(node);
      else if (now.nodeName !== node.nodeName) now.replaceWith(node);
      else if (node.nodeType !== Node.ELEMENT_NODE) now.data === node.data || (now.data = node.data);
      else {
        [...now.attributes].forEach(({ name }) => node.hasAttribute(name) || now.removeAttribute(name));
        [...node.attributes].forEach(({ name, value }) => now.getAttribute(name) === value || now.setAttribute(name, value));
        morph(now, node);
      }
    });
    before.slice(fresh.childNodes.length).forEach((node) => node.remove());
  };
  const fill = (id) => {
    const [node, html] = [place(id), wanted.get(id)];
    const done = filled.get(id);
    if (!node || (done?.node === node && done.html === html)) return;
    const template = document.createElement("template");
    template.innerHTML = html;
    morph(node, template.content);
    filled.set(id, { node, html });
  };
  const show = (id, html) => {
    wanted.set(id, html);
    fill(id);
  };

  // The log is a list of our own, to which lines are added.
  const log = Object.assign(document.createElement("ol"), { className: "log", tabIndex: 0, ariaLabel: "Log" });
  const putLog = () => {
    const node = place("log");
    if (!node) return;
    if (log.childElementCount) log.parentNode === node || node.replaceChildren(log);
    else if (!node.querySelector(".empty")) node.innerHTML = NO_LOG;
  };

  const sharedRun = document.documentElement.dataset.shared; // the page of a link: one run, no list
  let run = null; // the open one: id, events seen, pieces as text, whether it was drawn
  const options = { smooth: 1, log: 0, steps: "", at: null, others: [] };
  let source = null;
  let timer = null;
  let isHeldBack = false;
  let choosing = null;

  const address = (what) => {
    const query = new URLSearchParams({ smooth: options.smooth, log: options.log, from: run.seen });
    if (/^\s*\d{1,9}\s*(-|–|to)\s*\d{1,9}\s*$/.test(options.steps)) query.set("steps", options.steps);
    if (options.at !== null) query.set("at", options.at);
    if (options.others.length) query.set("others", options.others);
    return `${sharedRun ? location.pathname : `runs/${encodeURIComponent(run.id)}`}/${what}?${query}`;
  };
  const later = (then, milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(then, milliseconds);
  };
  const close = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };
  const connect = () => {
    close();
    if (!run || document.hidden) return;
    if (isHeldBack) return poll();
    const opened = (source = new EventSource(address("stream")));
    let hasSpoken = false;
    const heard = () => {
      hasSpoken = true;
      qlora.streamSpoke();
      later(connect, SILENT_MS);
    };
    opened.onmessage = (event) => {
      heard();
      apply(JSON.parse(event.data));
    };
    opened.addEventListener("beat", heard);
    opened.addEventListener("gone", leave);
    opened.onerror = () => {
      qlora.streamBroke();
      if (opened.readyState === EventSource.CLOSED) later(poll, hasSpoken ? RETRY_MS : 0);
    };
    later(() => {
      isHeldBack = !hasSpoken;
      connect();
    }, FIRST_MS);
  };
  // One page at a time: behind a proxy that holds streams back, and to find out why a stream was refused.
  const poll = async () => {
    close();
    const asked = run;
    const isStill = () => run === asked && !source;
    try {
      const answer = await fetch(address("now.json"), { cache: "no-store", signal: AbortSignal.timeout(20000) });
      if (!isStill()) return;
      if (answer.status === 404) return leave();
      if (answer.ok) apply(await answer.json());
    } catch {}
    if (isStill()) later(connect, isHeldBack ? POLL_MS : RETRY_MS);
  };
  const leave = () => {
    close();
    if (sharedRun) return location.reload();
    ask("run-state"); // Python says what happened
  };

  const patched = (html, changes) => {
    const parts = html.split(/(?=[<{])/);
    for (const [index, start, dropped, put] of changes) {
      parts[index] = parts[index].slice(0, start) + put + parts[index].slice(start + dropped);
    }
    return parts.join("");
  };
  const apply = (news) => {
    if (news.from === 0) log.replaceChildren();
    if (news.log) qlora.addLines(log, news.log);
    putLog();
    for (const [id, piece] of Object.entries(news.pieces ?? {})) {
      run.pieces[id] = typeof piece === "string" ? piece : patched(run.pieces[id], piece);
      show(id, run.pieces[id]);
    }
    run.seen = news.seen;
    if (news.samples) run.samples = news.samples;
    putSlider();
    if (news.state) run.state = news.state;
    checkState();
    finishOpening();
  };

  // Buttons are Gradio's: it is asked for them where they are those of another state.
  let askedAt = 0;
  const checkState = () => {
    const drawn = place("run-state")?.querySelector("[data-state]")?.dataset;
    if (!run?.state || drawn?.run !== run.id || drawn.state === run.state) return;
    const wait = askedAt + 2000 - Date.now();
    if (wait > 0) return setTimeout(checkState, wait);
    askedAt = Date.now();
    ask("run-state");
    refreshList();
  };

  const slider = () => document.querySelector("#sample-step input");
  const putSlider = () => {
    const input = slider();
    const { count, last, at } = run?.samples ?? {};
    if (!input || input.max === String(last) && input.dataset.at === String(at)) return;
    Object.assign(input, { max: last, value: at }).dataset.at = at;
    input.closest("label").hidden = !(count > 1);
    input.nextElementSibling.textContent = at?.toLocaleString("en") ?? "";
  };
  const choose = (step) => set({ at: step >= run.samples.last ? null : step });
  document.addEventListener("input", (event) => {
    if (event.target === slider()) choose(Number(event.target.value));
    if (event.target.closest?.("#steps-shown")) set({ steps: event.target.value });
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("#timeline [data-pick]");
    if (button) choose(Number(button.dataset.pick));
  });

  // Gradio's boxes tell of themselves; those of a shared page are plain ones.
  document.addEventListener("change", (event) => {
    const boxes = event.target.closest?.("[data-chart-options]");
    if (boxes) qlora.chooseView([...boxes.querySelectorAll(":checked")].map((box) => box.value), []);
  });

  const set = (changed) => {
    if (!run) return Object.assign(options, changed);
    const before = address("");
    Object.assign(options, changed);
    if (address("") === before) return;
    clearTimeout(choosing);
    choosing = setTimeout(connect, 60); // a slider that is dragged asks once
  };

  let isOpen = true;
  const finishOpening = () => isOpen && (!run || Object.keys(run.pieces).length) && qlora.opened();

  const watch = (id) => {
    if ((run?.id ?? "") === id) return;
    close();
    run = id ? { id, seen: 0, pieces: {}, state: "" } : null;
    Object.assign(options, { steps: "", at: null, others: [] });
    isOpen = false;
    markOpen();
    connect();
  };

  // The list of runs
  const list = { words: "", status: "", order: "newest" };
  let listed = { tag: "", busy: null };
  let listTimer = null;
  const markOpen = () =>
    document.querySelectorAll("#runs [data-pick]").forEach((link) => {
      if (link.dataset.pick === run?.id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
  const refreshList = async (isByTheClock = false) => {
    clearTimeout(listTimer);
    if (sharedRun) return;
    if (!document.hidden) {
      try {
        const headers = { "If-None-Match": listed.tag, "Cache-Control": isByTheClock ? "max-age=1" : "no-cache" };
        const request = { cache: "no-store", headers, signal: AbortSignal.timeout(20000) };
        const answer = await fetch(`runs/list.json?${new URLSearchParams(list)}`, request);
        if (answer.status === 200) showList(await answer.json(), answer.headers.get("ETag"));
      } catch {}
    }
    clearTimeout(listTimer);
    listTimer = setTimeout(refreshList, LIST_MS, true);
  };
  const showList = ({ runs, count, busy }, tag) => {
    show("runs", runs);
    markOpen();
    document.documentElement.classList.toggle("few-runs", count < 2);
    if (busy !== listed.busy) ask("busy");
    listed = { tag, busy };
  };

  document.addEventListener("visibilitychange", () => {
    connect();
    refreshList();
  });
  new MutationObserver(() => {
    wanted.forEach((_, id) => fill(id));
    if (run) putLog();
    if (run) putSlider();
    markOpen();
  }).observe(document, { childList: true, subtree: true });

  Object.assign(window.qlora, {
    watch,
    refreshList: () => refreshList(),
    checkState,
    chooseView: (names, others) =>
      set({ smooth: Number(names.includes("smooth")), log: Number(names.includes("log")), others: others ?? [] }),
    chooseRuns(words, status, order) {
      Object.assign(list, { words, status, order });
      refreshList();
    },
    pageIsOpen() {
      isOpen = true;
      checkState();
      finishOpening();
    },
  });
  if (sharedRun) {
    addEventListener("DOMContentLoaded", () => watch(sharedRun));
  } else {
    show("runs", LOADING);
    watch(new URLSearchParams(location.search).get("run") ?? "");
    refreshList();
  }
})();
