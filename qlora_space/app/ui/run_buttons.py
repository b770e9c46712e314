"""The buttons of a run: stop, resume, save now, sample now, new run from it, rename, delete."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor, shows_errors
from qlora_space.app.ui.navigation import run_at
from qlora_space.app.ui.share_panel import SharePanel, build_share_panel, wire_share_panel
from qlora_space.core.errors import QloraSpaceError
from qlora_space.runs import RunFolder, RunView
from qlora_space.runs.folder import ControlRequest

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
VIEWER: dict[str, Any] = PRIVATE | {"concurrency_limit": None}
_BUTTONS = (
    ("stop", "Stop", 110),
    ("resume", "Resume", 200),
    ("save", "Save now", 120),
    ("sample", "Sample now", 130),
    ("again", "New run from this one", 220),
    ("further", "Train it further", 170),
    ("share", "Share", 100),
    ("rename", "Rename", 110),
    ("delete", "Delete", 110),
)
_OF_SLICES = ("quota", "tab", "gpu")  # what a run in slices of lent GPU time waits for
_DESTRUCTIVE = ("Stop and discard", "Delete for good")
_CONTROL_REQUESTS: dict[ControlRequest, str] = {
    "save": "Saving after this step.",
    "sample": "Sampling after this step.",
}


@dataclass(frozen=True)
class RunButtons:
    """The row of buttons, and the confirmation rows that open below it."""

    by_name: dict[str, gr.Button]
    confirm_stop: gr.Row
    stop_answers: list[gr.Button]
    confirm_delete: gr.Row
    delete_answers: list[gr.Button]
    edit_name: gr.Row
    new_name: gr.Textbox
    name_answers: list[gr.Button]
    share: SharePanel

    @property
    def panels(self) -> list[gr.Row]:
        """One of them is open at a time."""
        return [self.confirm_stop, self.confirm_delete, self.edit_name, self.share.row]

    @property
    def outputs(self) -> list[Any]:
        return [*self.by_name.values(), *self.panels]

    def only(self, opened: gr.Row | None) -> dict[Any, Any]:
        return {panel: gr.update(visible=panel is opened) for panel in self.panels}

    def updates(self, run: RunFolder, view: RunView, step: int | None) -> dict[Any, Any]:
        """Show those that make sense in the run's state, and close every confirmation. `step`: to resume after."""
        is_training = view.status == "training"
        controls = {self.by_name[c]: gr.update(visible=is_training) for c in _CONTROL_REQUESTS}
        is_lent = view.pause is not None and view.pause.why in _OF_SLICES
        resume = f"{'Go on' if is_lent else 'Resume'} from step {step:,}" if step else "Start again"
        is_stopping = run.stop_request() is not None
        stop = "Stopping …" if is_stopping else "Stop"
        return {
            self.by_name["stop"]: gr.update(
                visible=not view.is_over, value=stop, interactive=not is_stopping
            ),
            self.by_name["resume"]: gr.update(
                visible=step is not None, value=resume, interactive=True
            ),
            self.by_name["again"]: gr.update(visible=view.is_over),
            self.by_name["further"]: gr.update(
                visible=view.is_over and run.has_adapter and not run.plan().is_low_bit
            ),
            self.by_name["delete"]: gr.update(visible=view.is_over),
            **controls,
            **self.only(None),
        }


def build_run_buttons(*, can_share: bool) -> RunButtons:
    with gr.Row(elem_id="run-buttons"):
        buttons = {
            name: gr.Button(
                label,
                elem_id=name,
                min_width=width,
                scale=0,
                size="md",
                visible=name == "rename" or (name == "share" and can_share),
            )
            for name, label, width in _BUTTONS
        }
    with gr.Row(visible=False, elem_classes="confirmation", elem_id="edit-name") as edit_name:
        new_name = gr.Textbox(label="New name", max_lines=1, max_length=80, elem_id="new-name")
        rename = gr.Button("Rename", scale=0, min_width=120, size="md", elem_id="rename-now")
        cancel = gr.Button("Cancel", scale=0, min_width=150, size="md", elem_classes="cancel")
    stop = ["Stop and keep the adapter", "Stop and discard", "Continue training"]
    confirm_stop, stop_answers = _confirmation("Stop this run?", stop, "stop")
    delete = ["Delete for good", "Cancel"]
    confirm_delete, delete_answers = _confirmation(
        "Delete this run with its adapter and log?", delete, "delete"
    )
    return RunButtons(
        buttons,
        confirm_stop,
        stop_answers,
        confirm_delete,
        delete_answers,
        edit_name,
        new_name,
        [rename, cancel],
        build_share_panel(),
    )


def wire_run_buttons(
    actions: Actions, row: RunButtons, address: gr.Textbox, refresh_after: Any
) -> None:
    """`refresh_after` refreshes the page after an event: it is given the event's `then` or `success`."""
    _wire_stop(actions, row, address, refresh_after)
    _wire_rename(actions, row, address, refresh_after)
    others = [panel for panel in row.panels if panel is not row.share.row]
    wire_share_panel(actions, row.share, row.by_name["share"], address, others)

    @for_visitor(actions)
    def resume_it(acting: Actions, query: str) -> Iterator[dict[str, Any]]:
        yield gr.update(value="Resuming …", interactive=False)
        try:
            acting.resume(run_at(acting, query))
        except QloraSpaceError:
            yield gr.update(value="Resume", interactive=True)
            raise

    def sends(request: ControlRequest) -> Any:
        @for_visitor(actions)
        def send(acting: Actions, query: str) -> None:
            acting.send_control_request(run_at(acting, query), request)
            gr.Info(_CONTROL_REQUESTS[request])

        return send

    @for_visitor(actions)
    def remove(acting: Actions, query: str) -> tuple[dict[str, Any], str]:
        acting.delete(run_at(acting, query))
        return gr.update(visible=False), ""

    button = row.by_name["resume"]
    resumed = button.click(resume_it, address, button, trigger_mode="once", **PRIVATE)
    refresh_after(resumed.success)
    for request in _CONTROL_REQUESTS:
        row.by_name[request].click(sends(request), address, None, **PRIVATE)
    confirm, cancel = row.delete_answers
    confirm.click(remove, address, [row.confirm_delete, address], **PRIVATE)
    _reveal(row, row.by_name["delete"], row.confirm_delete, cancel)


def _wire_stop(actions: Actions, row: RunButtons, address: gr.Textbox, refresh_after: Any) -> None:
    """A stop does not wait in Gradio's queue. What such a handler raises is shown nowhere: another one says it."""
    refusal = gr.State("")

    def stops(keeps: bool) -> Any:
        @for_visitor(actions)
        def stop_run(acting: Actions, query: str) -> str:
            try:
                acting.stop(run_at(acting, query), keeps)
            except Exception as error:
                return str(as_qlora_space_error(error))
            return ""

        return stop_run

    @shows_errors
    def say(why: str) -> None:
        if why:
            raise QloraSpaceError(why)

    keep, discard, go_on = row.stop_answers
    waiting = (gr.update(visible=False), gr.update(value="Stopping …", interactive=False))
    for button, keeps in ((keep, True), (discard, False)):
        clicked = button.click(
            lambda: waiting, None, [row.confirm_stop, row.by_name["stop"]], queue=False, **VIEWER
        )
        stopped = clicked.then(stops(keeps), address, refusal, queue=False, **PRIVATE)
        stopped.then(say, refusal, None, **VIEWER)
        refresh_after(stopped.then)
    _reveal(row, row.by_name["stop"], row.confirm_stop, go_on)


def _wire_rename(
    actions: Actions, row: RunButtons, address: gr.Textbox, refresh_after: Any
) -> None:
    @for_visitor(actions)
    def rename_it(acting: Actions, query: str, name: str) -> dict[str, Any]:
        acting.rename(run_at(acting, query), name)
        return gr.update(visible=False)

    @for_visitor(actions)
    def edit(acting: Actions, query: str) -> dict[Any, Any]:
        return row.only(row.edit_name) | {row.new_name: run_at(acting, query).name()}

    rename, cancel = row.name_answers
    for trigger in (rename.click, row.new_name.submit):
        refresh_after(trigger(rename_it, [address, row.new_name], row.edit_name, **PRIVATE).success)
    row.by_name["rename"].click(edit, address, [*row.panels, row.new_name], **VIEWER)
    cancel.click(lambda: gr.update(visible=False), None, row.edit_name, **VIEWER)


def _confirmation(question: str, answers: list[str], name: str) -> tuple[gr.Row, list[gr.Button]]:
    """A row that asks before something is lost. The last answer leaves everything as it is."""
    with gr.Row(visible=False, elem_classes="confirmation", elem_id=f"confirm-{name}") as row:
        gr.HTML(f"<strong>{question}</strong>")
        buttons = [
            gr.Button(
                answer,
                scale=0,
                min_width=215,
                size="md",
                variant="stop" if answer in _DESTRUCTIVE else "secondary",
                elem_classes="cancel" if answer == answers[-1] else None,
            )
            for answer in answers
        ]
    return row, buttons


def _reveal(row: RunButtons, opener: gr.Button, panel: gr.Row, closer: gr.Button) -> None:
    opener.click(lambda: row.only(panel), None, row.panels, **VIEWER)
    closer.click(lambda: gr.update(visible=False), None, panel, **VIEWER)
