"""Lists of things to pick, as plain HTML: a click on `data-pick` reaches Python with its value."""

from typing import Any

import gradio as gr

# A click with a modifier stays a link, so that a run opens in a new tab.
_ON_CLICK = """
element.addEventListener('click', (event) => {
  const picked = event.target.closest('[data-pick]');
  if (!picked || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {pick: picked.dataset.pick});
});
"""


def build_picks(value: str, **layout: Any) -> gr.HTML:
    return gr.HTML(value, js_on_load=_ON_CLICK, **layout)


def picked(event: gr.EventData) -> str:
    """The value of what was clicked; untrusted."""
    return str(event.pick)
