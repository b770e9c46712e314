"""Where a visitor is and what they click: the URL, and lists of links and buttons. All of it is untrusted text."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.links import Link, link_of
from qlora_space.runs import RunFolder

PAGES = ("run", "compare", "publish")
# A click on an element with `data-pick` reaches Python with that value. With a modifier key it stays a link,
# so that a run opens in a new tab.
_ON_CLICK = """
element.addEventListener('click', (event) => {
  const picked = event.target.closest('[data-pick]');
  if (!picked || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  trigger('click', {pick: picked.dataset.pick});
});
"""

# stream.js asks Python for what only Gradio can change.
ON_ASK = "element.addEventListener('ask', () => trigger('click'))"


@dataclass(frozen=True)
class Address:
    """The query of the URL: `run=ID&view=compare`; empty for the page "New run". `of=ID` names a comparison that was
    kept, which the browser alone remembers. `link`: what a link of links.py fills in, where no run is named."""

    run_id: str = ""
    page: str = "run"
    comparison: str = ""
    link: Link = field(default_factory=Link)

    def __str__(self) -> str:
        return urlencode({"run": self.run_id, "view": self.page}) if self.run_id else str(self.link)


def parse_address(query: str) -> Address:
    """Unknown values give the page "New run", or the run's first page."""
    values = {name: all_[-1] for name, all_ in parse_qs(query.removeprefix("?")).items()}
    page = values.get("view", "run")
    run_id = values.get("run", "")[:64]
    link = Link() if run_id else link_of(values)
    return Address(run_id, page if page in PAGES else "run", values.get("of", "")[:64], link)


def run_at(actions: Actions, query: str) -> RunFolder:
    """The run that the URL names. Raises RunError."""
    return actions.run(parse_address(query).run_id)


def build_pick_list(value: str, **layout: Any) -> gr.HTML:
    """HTML whose elements with `data-pick` can be clicked."""
    return gr.HTML(value, js_on_load=_ON_CLICK, **layout)


def picked(event: gr.EventData) -> str:
    """The value of what was clicked."""
    return str(event.pick)
