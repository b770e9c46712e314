"""The page "Run": progress, charts, samples, log, result, and the buttons that stop and delete."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.actions import Actions
from qlora_space.runs import RunView
from qlora_space.ui import render_low_bit, render_run
from qlora_space.ui.boundary import shows_errors
from qlora_space.ui.live import LiveRun, log_tail
from qlora_space.ui.render import empty, notice, text

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_VIEWER: dict[str, Any] = _PRIVATE | {"concurrency_limit": None}
_OPTIONS = [("Smooth", "smooth"), ("Log scale", "log")]


@dataclass(frozen=True)
class RunPage:
    """The components that change while a run is watched."""

    live: gr.State
    timer: gr.Timer
    pieces: dict[str, gr.HTML]
    options: gr.CheckboxGroup
    step: gr.Slider
    stop: gr.Button
    delete: gr.Button
    again: gr.Button
    next_steps: gr.Row
    questions: tuple[gr.Row, gr.Row]

    @property
    def outputs(self) -> list[Any]:
        rest = [
            self.live,
            self.timer,
            self.step,
            self.stop,
            self.delete,
            self.again,
            self.next_steps,
            *self.questions,
        ]
        return [*self.pieces.values(), *rest]

    def shown(self, live: LiveRun, options: Sequence[str], step: float) -> dict[Component, Any]:
        """Only what changed since this tab's last look, so that nothing flickers."""
        steps = render_run.sample_steps(live.view)
        is_at_end = step >= (live.shown_steps[-1] if live.shown_steps else 0)
        at = steps[-1] if steps and is_at_end else int(step)
        changed = live.changed(_pieces(live, options, at))
        updates: dict[Any, Any] = {self.pieces[name]: piece for name, piece in changed.items()}
        if steps != live.shown_steps:
            live.shown_steps = steps
            updates[self.step] = gr.update(
                maximum=max(steps[-1], 1), value=at, visible=len(steps) > 1
            )
        if live.shown_status != live.view.status:
            live.shown_status = live.view.status
            updates |= self._controls(live)
        return updates

    def _controls(self, live: LiveRun) -> dict[Any, Any]:
        over = live.view.is_over
        return {
            self.timer: gr.Timer(active=not over),
            self.stop: gr.update(visible=not over, value="Stop", interactive=True),
            self.delete: gr.update(visible=over),
            self.again: gr.update(visible=over),
            self.next_steps: gr.update(visible=live.run.has_adapter and over),
            **{question: gr.update(visible=False) for question in self.questions},
        }


def _pieces(live: LiveRun, options: Sequence[str], step: int) -> dict[str, str]:
    view = live.view
    return {
        "head": render_run.head(live.plan, view),
        "outcome": _outcome(live, view),
        "charts": render_run.charts(view, options),
        "samples": render_run.samples(view, step),
        "log": render_run.log(live.events),
    }


def _outcome(live: LiveRun, view: RunView) -> str:
    gate = render_low_bit.gate(view.gate) if view.gate else ""
    return _ending(live, view) + gate


def _ending(live: LiveRun, view: RunView) -> str:
    if view.failure is not None:
        return render_run.failure(view.failure)
    if view.status == "cancelled":
        return notice("info", "This run was stopped and its adapter discarded.")
    report = live.run.report() if view.status == "finished" else None
    return render_run.result(report) if report else ""


def build_run_page(actions: Actions, address: gr.Textbox, tabs: gr.Tabs) -> RunPage:
    """Lay out and wire the page inside the current tab."""
    live, timer = gr.State(None), gr.Timer(1.0, active=False)
    pieces = {"head": gr.HTML(elem_id="run-head")}
    with gr.Row(elem_id="run-buttons"):
        stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=110, size="md")
        hidden: dict[str, Any] = {"scale": 0, "size": "md", "visible": False}
        again = gr.Button(
            "Start again from these settings", elem_id="again", min_width=290, **hidden
        )
        delete = gr.Button("Delete", elem_id="delete", min_width=110, **hidden)
    confirm_stop, keep, discard, go_on = _question(
        "Stop this run?",
        ["Stop and keep the adapter", "Stop and discard", "Go on training"],
        "stop",
    )
    confirm_delete, really, leave = _question(
        "Delete this run with its adapter and log?", ["Delete for good", "Keep it"], "delete"
    )
    pieces["outcome"] = gr.HTML(elem_id="run-outcome")
    with gr.Row(visible=False, elem_id="next-steps") as next_steps:
        compare = gr.Button(
            "Compare with the base", variant="primary", scale=0, min_width=230, size="md"
        )
        publish = gr.Button("Publish to the Hub", scale=0, min_width=230, size="md")
    with gr.Column(elem_classes="sheet", elem_id="charts"):
        options = gr.CheckboxGroup(
            _OPTIONS, value=["smooth"], show_label=False, container=False, elem_id="chart-options"
        )
        pieces["charts"] = gr.HTML(elem_id="charts-body")
    with gr.Column(elem_classes="sheet", elem_id="samples-panel"):
        gr.HTML('<h3 class="panel-title">What it answers</h3>')
        step = gr.Slider(
            0, 1, value=0, step=1, label="Step", visible=False, elem_id="sample-step", buttons=[]
        )
        pieces["samples"] = gr.HTML(elem_id="samples")
    with gr.Column(elem_classes="sheet", elem_id="log-panel"):
        gr.HTML(render_run.LOG_TITLE)
        pieces["log"] = gr.HTML(elem_id="log")
        with gr.Accordion("The worker's own log", open=False, elem_id="worker-log") as worker_log:
            tail = gr.HTML()
    questions = (confirm_stop, confirm_delete)
    page = RunPage(live, timer, pieces, options, step, stop, delete, again, next_steps, questions)

    @shows_errors
    def look(seen: LiveRun | None, chosen: list[str], at: float) -> dict[Any, Any]:
        if seen is None:
            return {timer: gr.Timer(active=False)}
        seen.advance(actions)
        return page.shown(seen, chosen, at)

    @shows_errors
    def end(seen: LiveRun, keeps: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        actions.stop(seen.run, keeps)
        return gr.update(visible=False), gr.update(value="Stopping …", interactive=False)

    @shows_errors
    def remove(seen: LiveRun) -> tuple[dict[str, Any], str]:
        actions.delete(seen.run)
        return gr.update(visible=False), ""

    @shows_errors
    def read_log(seen: LiveRun) -> str:
        tail_text = log_tail(actions, seen.run)
        return f'<pre tabindex="0">{text(tail_text)}</pre>' if tail_text else empty("It is empty")

    inputs = [live, options, step]
    gr.on([timer.tick, options.change, step.release], look, inputs, page.outputs, **_VIEWER)
    stopped = [confirm_stop, stop]
    keep.click(lambda seen: end(seen, True), live, stopped, **_PRIVATE)
    discard.click(lambda seen: end(seen, False), live, stopped, **_PRIVATE)
    really.click(remove, live, [confirm_delete, address], **_PRIVATE)
    worker_log.expand(read_log, live, tail, **_VIEWER)
    _reveal(stop, confirm_stop, go_on)
    _reveal(delete, confirm_delete, leave)
    for button, name in ((compare, "compare"), (publish, "publish")):
        button.click(lambda name=name: gr.Tabs(selected=name), None, tabs, **_VIEWER)
    return page


def _question(question: str, answers: list[str], name: str) -> tuple[Any, ...]:
    """A row that asks before something is lost."""
    with gr.Row(visible=False, elem_classes="question", elem_id=f"ask-{name}") as row:
        gr.HTML(f"<strong>{question}</strong>")
        buttons = [gr.Button(answer, scale=0, min_width=215, size="md") for answer in answers]
    return row, *buttons


def _reveal(opener: gr.Button, row: gr.Row, closer: gr.Button) -> None:
    opener.click(lambda: gr.update(visible=True), None, row, **_VIEWER)
    closer.click(lambda: gr.update(visible=False), None, row, **_VIEWER)
