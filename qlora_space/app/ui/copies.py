"""Below the list of runs: those that are on the account and not on this machine, and how they come back."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.copies import copies_not_here
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.core.errors import HubError, RequestError
from qlora_space.core.wording import plain_name
from qlora_space.hub import MirroredRun

_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Copies:
    panel: gr.Column
    choice: gr.Dropdown
    fetch: gr.Button


def build_copies() -> Copies:
    """Not seen while there are none."""
    with gr.Column(visible=False, elem_id="copies") as panel:
        choice = gr.Dropdown(
            [],
            label="On your account, not here",
            info="Copies that were kept while they trained.",
            elem_id="copies-choice",
        )
        fetch = gr.Button("Bring it back", size="sm", elem_id="copies-fetch")
    return Copies(panel, choice, fetch)


def wire_copies(actions: Actions, copies: Copies, page: gr.Blocks, address: gr.Textbox) -> None:
    """Read when the page opens; a run that was brought back is opened."""

    @for_visitor(actions)
    def read(acting: Actions) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            found = copies_not_here(acting)
        except HubError:  # the page is useful without
            found = []
        choices = [(label(copy), copy.repo) for copy in found]
        first = choices[0][1] if choices else None
        return gr.update(visible=bool(choices)), gr.update(choices=choices, value=first)

    @for_visitor(actions)
    def fetch(acting: Actions, repo: str | None) -> str:
        if not repo:
            raise RequestError("No copy is chosen.", "Choose one.")
        return f"run={acting.fetch(repo).id}&view=run"

    outputs = [copies.panel, copies.choice]
    page.load(read, None, outputs, concurrency_limit=4, **_QUIET)
    fetched = copies.fetch.click(
        fetch, copies.choice, address, trigger_mode="once", api_visibility="private"
    )
    fetched.success(read, None, outputs, **_QUIET)


def label(copy: MirroredRun) -> str:
    """Its name and how far it is."""
    name = plain_name(copy.name)[:60] or copy.repo
    return f"{name}, done" if copy.done else f"{name}, step {copy.step:,}"
