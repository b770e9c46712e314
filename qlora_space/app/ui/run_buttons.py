"""What one can do with a run: stop, resume, save now, sample now, fork, rename, delete."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.live import LiveRun
from qlora_space.core.errors import QloraSpaceError
from qlora_space.runs.folder import ControlRequest

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
VIEWER: dict[str, Any] = PRIVATE | {"concurrency_limit": None}
_BUTTONS = (
    ("stop", "Stop", 110),
    ("resume", "Resume", 200),
    ("save", "Save now", 120),
    ("sample", "Sample now", 130),
    ("again", "New run from this one", 220),
    ("rename", "Rename", 110),
    ("delete", "Delete", 110),
)
_WISHES: tuple[ControlRequest, ...] = ("save", "sample")


@dataclass(frozen=True)
class RunButtons:
    """The row of buttons, and the rows that open below it."""

    buttons: dict[str, gr.Button]
    ask_stop: gr.Row
    stop_answers: list[gr.Button]
    ask_delete: gr.Row
    delete_answers: list[gr.Button]
    ask_name: gr.Row
    new_name: gr.Textbox
    name_answers: list[gr.Button]

    @property
    def outputs(self) -> list[Any]:
        return [*self.buttons.values(), self.ask_stop, self.ask_delete, self.ask_name]

    def shown(self, live: LiveRun) -> dict[Any, Any]:
        """Those that make sense for the run as it stands."""
        view, step = live.view, live.resume_step
        wishes = {self.buttons[w]: gr.update(visible=view.status == "training") for w in _WISHES}
        closed = {row: gr.update(visible=False) for row in (self.ask_stop, self.ask_delete)}
        resume = f"Resume from step {step:,}" if step else "Start again"
        is_stopping = live.run.stop_request() is not None
        stop = "Stopping …" if is_stopping else "Stop"
        return {
            self.buttons["stop"]: gr.update(
                visible=not view.is_over, value=stop, interactive=not is_stopping
            ),
            self.buttons["resume"]: gr.update(
                visible=step is not None, value=resume, interactive=True
            ),
            self.buttons["again"]: gr.update(visible=view.is_over),
            self.buttons["delete"]: gr.update(visible=view.is_over),
            self.ask_name: gr.update(visible=False),
            **wishes,
            **closed,
        }


def build_run_buttons() -> RunButtons:
    with gr.Row(elem_id="run-buttons"):
        buttons = {
            name: gr.Button(
                label, elem_id=name, min_width=width, scale=0, size="md", visible=name == "rename"
            )
            for name, label, width in _BUTTONS
        }
    with gr.Row(visible=False, elem_classes="question", elem_id="ask-name") as ask_name:
        new_name = gr.Textbox(label="New name", max_lines=1, max_length=80, elem_id="new-name")
        rename = gr.Button("Rename", scale=0, min_width=120, size="md", elem_id="rename-now")
        same_name = gr.Button("Keep the name", scale=0, min_width=150, size="md")
    stop = ["Stop and keep the adapter", "Stop and discard", "Go on training"]
    ask_stop, stop_answers = _question("Stop this run?", stop, "stop")
    delete = ["Delete for good", "Keep it"]
    ask_delete, delete_answers = _question(
        "Delete this run with its adapter and log?", delete, "delete"
    )
    return RunButtons(
        buttons,
        ask_stop,
        stop_answers,
        ask_delete,
        delete_answers,
        ask_name,
        new_name,
        [rename, same_name],
    )


def wire_run_buttons(
    actions: Actions, row: RunButtons, live: gr.State, address: gr.Textbox, redraw: Any
) -> None:
    """`redraw` follows what changes the run: it is given an event's `then`."""
    _wire_stop(actions, row, live)
    _wire_rename(actions, row, live, redraw)

    @shows_errors
    def resume_it(seen: LiveRun, token: gr.OAuthToken | None) -> Iterator[dict[str, Any]]:
        yield gr.update(value="Resuming …", interactive=False)
        try:
            actions.resume(seen.run, token and token.token)
        except QloraSpaceError:
            yield gr.update(value="Resume", interactive=True)
            raise

    @shows_errors
    def ask_for(seen: LiveRun, wish: ControlRequest) -> None:
        actions.ask_for(seen.run, wish)
        gr.Info("It comes after the step that is being done.")

    @shows_errors
    def remove(seen: LiveRun) -> tuple[dict[str, Any], str]:
        actions.delete(seen.run)
        return gr.update(visible=False), ""

    button = row.buttons["resume"]
    resumed = button.click(resume_it, live, button, trigger_mode="once", **PRIVATE)
    redraw(resumed.success)
    for wish in _WISHES:
        row.buttons[wish].click(lambda seen, wish=wish: ask_for(seen, wish), live, None, **PRIVATE)
    really, leave = row.delete_answers
    really.click(remove, live, [row.ask_delete, address], **PRIVATE)
    _reveal(row.buttons["delete"], row.ask_delete, leave)


def _wire_stop(actions: Actions, row: RunButtons, live: gr.State) -> None:
    @shows_errors
    def end(seen: LiveRun, keeps: bool) -> None:
        try:
            actions.stop(seen.run, keeps)
        except QloraSpaceError:
            seen.shown_standing = ()  # the next look draws the button anew
            raise

    keep, discard, go_on = row.stop_answers
    waiting = (gr.update(visible=False), gr.update(value="Stopping …", interactive=False))
    for button, keeps in ((keep, True), (discard, False)):
        said = button.click(lambda: waiting, None, [row.ask_stop, row.buttons["stop"]], **VIEWER)
        said.then(lambda seen, keeps=keeps: end(seen, keeps), live, None, **PRIVATE)
    _reveal(row.buttons["stop"], row.ask_stop, go_on)


def _wire_rename(actions: Actions, row: RunButtons, live: gr.State, redraw: Any) -> None:
    @shows_errors
    def call_it(seen: LiveRun, name: str) -> dict[str, Any]:
        actions.rename(seen.run, name)
        return gr.update(visible=False)

    rename, same_name = row.name_answers
    for trigger in (rename.click, row.new_name.submit):
        redraw(trigger(call_it, [live, row.new_name], row.ask_name, **PRIVATE).success)
    row.buttons["rename"].click(
        shows_errors(lambda seen: (gr.update(visible=True), actions.run(seen.run.id).name())),
        live,
        [row.ask_name, row.new_name],
        **VIEWER,
    )
    same_name.click(lambda: gr.update(visible=False), None, row.ask_name, **VIEWER)


def _question(question: str, answers: list[str], name: str) -> tuple[gr.Row, list[gr.Button]]:
    """A row that asks before something is lost."""
    with gr.Row(visible=False, elem_classes="question", elem_id=f"ask-{name}") as row:
        gr.HTML(f"<strong>{question}</strong>")
        buttons = [gr.Button(answer, scale=0, min_width=215, size="md") for answer in answers]
    return row, buttons


def _reveal(opener: gr.Button, row: gr.Row, closer: gr.Button) -> None:
    opener.click(lambda: gr.update(visible=True), None, row, **VIEWER)
    closer.click(lambda: gr.update(visible=False), None, row, **VIEWER)
