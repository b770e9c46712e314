// What Gradio 6.31 leaves out for the keyboard and for screen readers.
(() => {
  // A menu that is left with Tab stays open: Gradio opens it again after it has closed it.
  addEventListener(
    "keydown",
    (event) => {
      const isLeft = ["Tab", "Shift", "Control", "Alt", "Meta"].includes(event.key);
      if (isLeft && event.target.role === "combobox") event.stopImmediatePropagation();
    },
    true,
  );

  const isShown = (node) => node?.checkVisibility?.() ?? Boolean(node?.offsetParent);
  // Escape answers an open question with "leave it as it is".
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.role === "combobox") return;
    const open = [...document.querySelectorAll(".confirmation .cancel")].filter(isShown);
    open.at(-1)?.click();
  });

  // Votes: not while one types, and not twice for a key that is held.
  const VOTES = { 1: "left", 0: "tie", 2: "right" };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable=true]");
    if (!(event.key in VOTES) || isTyping || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = document.querySelector(`#vote-${VOTES[event.key]}`);
    if (isShown(button)) button.click();
  });

  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-skip]")) return;
    event.preventDefault();
    const places = ["#start:enabled", "#field-dataset input", "#tabs [role=tab][aria-selected=true]"];
    places.map((place) => document.querySelector(place)).find(isShown)?.focus();
  });

  // "Show more" unfolds the panel that it is in; it stays unfolded when its content is replaced.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-more]");
    button?.closest(".block.foldable").toggleAttribute("data-unfolded");
  });

  const attribute = (node, name, value) => node.getAttribute(name) !== value && node.setAttribute(name, value);
  const mend = () => {
    document.querySelectorAll(".label-wrap").forEach((button) => {
      attribute(button, "aria-expanded", String(button.classList.contains("open")));
    });
    // One stop for Tab, and arrow keys within.
    document.querySelectorAll("fieldset[id] input[type=radio]").forEach((radio) => {
      attribute(radio, "name", radio.closest("fieldset").id);
    });
    document.querySelectorAll("[data-more]").forEach((button) => {
      attribute(button, "aria-expanded", String(button.closest(".block.foldable").hasAttribute("data-unfolded")));
    });
  };
  let isDue = false;
  const soon = () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      mend();
    });
  };
  const watched = { childList: true, subtree: true, attributeFilter: ["class", "data-unfolded"] };
  new MutationObserver(soon).observe(document, watched);
})();
