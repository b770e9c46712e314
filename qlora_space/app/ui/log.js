// The log of a run: lines are added at its top, filtered, followed, copied and saved.
(() => {
  const MOST_LINES = 300; // of steps, and of other events; as in render/run.py
  const choice = (name) => document.querySelector(`[data-log="${name}"]`);
  const levels = { "": [], warning: ["log-warning", "log-error"], error: ["log-error"] };

  const filter = (lines) => {
    const words = (choice("words")?.value ?? "").toLowerCase();
    const wanted = levels[choice("level")?.value ?? ""];
    lines.forEach((line) => {
      const fits = !wanted.length || wanted.some((name) => line.classList.contains(name));
      line.hidden = !fits || !line.textContent.toLowerCase().includes(words);
    });
  };
  document.addEventListener("input", (event) => {
    if (event.target.closest?.("[data-log]")) filter(document.querySelectorAll("#log .log > li"));
  });

  // The newest line is the first: without following, the line that is being read stays where it is.
  let isAtTop = true;
  document.addEventListener("scroll", ({ target }) => target.matches?.("#log .log") && (isAtTop = !target.scrollTop), true);
  window.qlora.addLines = (list, markup) => {
    const isLeft = isAtTop && (choice("follow")?.checked ?? true); // measuring would lay the page out
    const { scrollTop, scrollHeight } = isLeft ? {} : list;
    const template = document.createElement("template");
    template.innerHTML = markup;
    filter([...template.content.children]);
    list.prepend(template.content);
    if (!isLeft) list.scrollTop = choice("follow")?.checked ? 0 : scrollTop + list.scrollHeight - scrollHeight;
    for (const kind of ["[data-step]", ":not([data-step])"]) {
      [...list.querySelectorAll(`:scope > li${kind}`)].slice(MOST_LINES).forEach((line) => line.remove());
    }
  };

  const lines = (selector) =>
    [...document.querySelectorAll(selector + " > li:not([hidden])")].map((li) => [...li.children].map((c) => c.textContent).join("  "));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-save-from]");
    if (!button) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines(button.dataset.saveFrom).join("\n") + "\n"], { type: "text/plain" }));
    link.download = "training-log.txt";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // The server does not know its own name. The prompt is the one that stands in the box now.
  const address = ({ dataset }) => {
    const url = new URL(dataset.copyLink, location.origin + location.pathname);
    const prompt = dataset.promptFrom && document.querySelector(dataset.promptFrom)?.value.trim();
    if (prompt) url.searchParams.set("prompt", prompt);
    return url.href;
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from], [data-copy-link]");
    if (!button) return;
    const words = button.querySelector("span");
    const { copyFrom: from, copyLink: link } = button.dataset;
    words.dataset.before ??= words.textContent; // a second click would find “Copied”
    try {
      await navigator.clipboard.writeText(link ? address(button) : from ? lines(from).join("\n") : button.dataset.copy);
      words.textContent = "Copied";
    } catch {
      if (link) return prompt("The link", address(button));
      getSelection().selectAllChildren(from ? document.querySelector(from) : button.parentElement.querySelector("code"));
      words.textContent = "Press Ctrl C";
    }
    setTimeout(() => (words.textContent = words.dataset.before), 1500);
  });
})();
