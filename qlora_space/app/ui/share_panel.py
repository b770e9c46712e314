"""The link of a run for others: what it shows, the link itself, and taking it back."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.navigation import run_at
from qlora_space.runs import RunFolder
from qlora_space.runs.sharing import share, shared_address, stop_sharing

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_SHOWS = "its name, settings, progress, curves and result"
_NOT = "They see no log, and can change, compare and publish nothing."
# The server does not know its own name; the browser does.
_AS_WHOLE_ADDRESS = "(path) => path && new URL(path, location.origin + location.pathname).href"


@dataclass(frozen=True)
class SharePanel:
    row: gr.Row
    words: gr.HTML
    link: gr.Textbox
    make: gr.Button
    stop: gr.Button
    close: gr.Button

    @property
    def outputs(self) -> list[Any]:
        return [self.row, self.words, self.link, self.make, self.stop]

    def updates(self, run: RunFolder) -> dict[Any, Any]:
        """Open, as the run is shared or not."""
        address = shared_address(run)
        return {
            self.row: gr.update(visible=True),
            self.words: words(run, is_shared=bool(address)),
            self.link: gr.update(value=address, visible=bool(address)),
            self.make: gr.update(visible=not address),
            self.stop: gr.update(visible=bool(address)),
        }


def words(run: RunFolder, *, is_shared: bool) -> str:
    """What a link shows of this run."""
    shown = f"{_SHOWS} and its sample answers" if run.plan().dataset.is_public else _SHOWS
    hidden = (
        "" if run.plan().dataset.is_public else " Your data is not public: no row of it is shown."
    )
    now = "sees" if is_shared else "will see"
    return f"<strong>Whoever has the link {now} {shown}.</strong> {_NOT}{hidden}"


def build_share_panel() -> SharePanel:
    """Below the buttons of a run, closed."""
    with gr.Row(visible=False, elem_classes="confirmation", elem_id="share-panel") as row:
        words_ = gr.HTML(elem_id="share-words", min_width=260)
        link = gr.Textbox(
            label="Link",
            max_lines=1,
            scale=2,
            min_width=260,
            buttons=["copy"],
            interactive=False,
            visible=False,
            elem_id="share-link",
        )
        make = gr.Button("Make a link", scale=0, min_width=150, size="md", elem_id="share-make")
        stop = gr.Button(
            "Stop sharing",
            scale=0,
            min_width=150,
            size="md",
            variant="stop",
            visible=False,
            elem_id="share-stop",
        )
        close = gr.Button("Close", scale=0, min_width=110, size="md", elem_classes="cancel")
    return SharePanel(row, words_, link, make, stop, close)


def wire_share_panel(
    actions: Actions,
    panel: SharePanel,
    opener: gr.Button,
    address: gr.Textbox,
    other_panels: list[gr.Row],
) -> None:
    """`other_panels` close when this one opens."""

    @for_visitor(actions)
    def open_panel(acting: Actions, query: str) -> dict[Any, Any]:
        closed = {other: gr.update(visible=False) for other in other_panels}
        return closed | panel.updates(run_at(acting, query))

    @for_visitor(actions)
    def share_it(acting: Actions, query: str) -> dict[Any, Any]:
        run = run_at(acting, query)
        share(run)
        return panel.updates(run)

    @for_visitor(actions)
    def take_back(acting: Actions, query: str) -> dict[Any, Any]:
        run = run_at(acting, query)
        stop_sharing(run)
        return panel.updates(run)

    for button, handler in (
        (opener, open_panel),
        (panel.make, share_it),
        (panel.stop, take_back),
    ):
        done = button.click(handler, address, [*panel.outputs, *other_panels], **_PRIVATE)
        done.then(None, panel.link, panel.link, js=_AS_WHOLE_ADDRESS, api_visibility="private")
    panel.close.click(lambda: gr.update(visible=False), None, panel.row, **_PRIVATE)
