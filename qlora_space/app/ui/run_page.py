"""The page "Run": progress, charts, other runs beside it, answers over time, and the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.address import parse_address
from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.live import LiveRun, log_tail
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render import samples as render_samples
from qlora_space.app.ui.render.changes import MOST_BESIDE
from qlora_space.app.ui.render.html import empty, text
from qlora_space.app.ui.render.picks import build_picks, picked
from qlora_space.app.ui.run_buttons import VIEWER, RunButtons, build_run_buttons, wire_run_buttons
from qlora_space.app.ui.run_pieces import pieces_of

_OPTIONS = [("Smooth", "smooth"), ("Log scale", "log")]
_LOOK_SECONDS = 1.0
_LOOK_SECONDS_OVER = 5.0  # another tab may resume, rename or delete it


@dataclass(frozen=True)
class RunPage:
    """The components that change while a run is watched."""

    live: gr.State
    timer: gr.Timer
    pieces: dict[str, gr.HTML]
    options: gr.CheckboxGroup
    step: gr.Slider
    others: gr.Dropdown
    row: RunButtons
    next_steps: gr.Row

    @property
    def outputs(self) -> list[Any]:
        rest = [self.live, self.timer, self.step, self.others, *self.row.outputs, self.next_steps]
        return [*self.pieces.values(), *rest]

    @property
    def inputs(self) -> list[Any]:
        return [self.live, self.options, self.step, self.others]

    @property
    def again(self) -> gr.Button:
        return self.row.buttons["again"]

    def shown(self, live: LiveRun, options: Sequence[str], step: float) -> dict[Component, Any]:
        """Only what changed since this tab's last look, so that nothing flickers."""
        steps = render_samples.sample_steps(live.view)
        is_at_end = step >= (live.shown_steps[-1] if live.shown_steps else 0)
        at = steps[-1] if steps and is_at_end else int(step)
        changed = live.changed(pieces_of(live, options, at))
        updates: dict[Any, Any] = {self.pieces[name]: piece for name, piece in changed.items()}
        if steps != live.shown_steps:
            live.shown_steps = steps
            updates[self.step] = gr.update(
                maximum=max([*steps, 1]), value=at, visible=len(steps) > 1
            )
        wish = live.run.stop_request()
        standing = (live.view.status, live.view.attempts, live.resume_step, wish)
        if live.shown_standing != standing:
            live.shown_standing = standing
            over = live.view.is_over
            seconds = _LOOK_SECONDS_OVER if over else _LOOK_SECONDS
            updates |= self.row.shown(live) | {
                self.timer: gr.Timer(seconds, active=True),
                self.next_steps: gr.update(visible=live.run.has_adapter and over),
            }
        return updates or {self.live: gr.skip()}  # Gradio does not take an empty answer


def build_run_page(actions: Actions, address: gr.Textbox, tabs: gr.Tabs) -> RunPage:
    """Lay out and wire the page inside the current tab."""
    pieces = {"head": gr.HTML(elem_id="run-head")}
    row = build_run_buttons()
    pieces["outcome"] = gr.HTML(elem_id="run-outcome")
    pieces["fork"] = gr.HTML(elem_id="run-fork")
    next_steps = _next_steps(tabs)
    options, others = _charts(pieces)
    step = _answers(pieces)
    live, timer = gr.State(None), gr.Timer(_LOOK_SECONDS, active=False)
    page = RunPage(live, timer, pieces, options, step, others, row, next_steps)
    _log(actions, pieces, live)
    look = _look(actions, page, address)
    outputs = [*page.outputs, address]
    inputs = [*page.inputs, address]
    gr.on([timer.tick, options.change, others.change], look, inputs, outputs, **VIEWER)
    step.input(look, inputs, outputs, trigger_mode="always_last", **VIEWER)
    chosen = pieces["timeline"].click(_step_of, None, step, **VIEWER)
    chosen.then(look, inputs, outputs, **VIEWER)
    others.focus(
        shows_errors(lambda seen: gr.update(choices=seen.others(actions))), live, others, **VIEWER
    )

    def redraw(then: Any) -> None:
        then(look, inputs, outputs, **VIEWER)

    wire_run_buttons(actions, row, live, address, redraw)
    return page


def _look(actions: Actions, page: RunPage, address: gr.Textbox) -> Any:
    @shows_errors
    def look(
        seen: LiveRun | None, options: list[str], step: float, beside: list[str] | None, query: str
    ) -> dict[Any, Any]:
        if seen is None:
            return {page.timer: gr.Timer(active=False)}
        if parse_address(query).run_id != seen.run.id:  # another run is being opened
            return {page.live: gr.skip()}
        if not seen.run.path.exists():
            gr.Info("This run was deleted.")
            return {page.timer: gr.Timer(active=False), address: ""}
        seen.advance(actions)
        seen.lay_beside(actions, beside or [])
        return page.shown(seen, options, step)

    return look


def _next_steps(tabs: gr.Tabs) -> gr.Row:
    with gr.Row(visible=False, elem_id="next-steps") as row:
        compare = gr.Button(
            "Compare with the base", variant="primary", scale=0, min_width=230, size="md"
        )
        publish = gr.Button("Publish to the Hub", scale=0, min_width=230, size="md")
    for button, name in ((compare, "compare"), (publish, "publish")):
        button.click(lambda name=name: gr.Tabs(selected=name), None, tabs, **VIEWER)
    return row


def _charts(pieces: dict[str, gr.HTML]) -> tuple[gr.CheckboxGroup, gr.Dropdown]:
    with gr.Column(elem_classes="sheet", elem_id="charts"):
        options = gr.CheckboxGroup(
            _OPTIONS, value=["smooth"], show_label=False, container=False, elem_id="chart-options"
        )
        pieces["charts"] = gr.HTML(elem_id="charts-body")
        pieces["advice"] = gr.HTML(elem_id="advice")
        others = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MOST_BESIDE,
            label="Lay other runs over this one",
            info=f"Up to {MOST_BESIDE}: their losses, and the settings in which they differ.",
            elem_id="others",
            visible=False,
        )
        pieces["overlay"] = gr.HTML(elem_id="overlay")
    return options, others


def _answers(pieces: dict[str, gr.HTML]) -> gr.Slider:
    with gr.Column(elem_classes="sheet", elem_id="samples-panel"):
        gr.HTML('<h3 class="panel-title">What it answers</h3>')
        pieces["timeline"] = build_picks("", elem_id="timeline")
        step = gr.Slider(
            0, 1, value=0, step=1, label="Step", visible=False, elem_id="sample-step", buttons=[]
        )
        pieces["samples"] = gr.HTML(elem_id="samples")
    return step


def _log(actions: Actions, pieces: dict[str, gr.HTML], live: gr.State) -> None:
    with gr.Column(elem_classes="sheet", elem_id="log-panel"):
        gr.HTML(render_run.LOG_TITLE)
        pieces["log"] = gr.HTML(elem_id="log")
        with gr.Accordion("The worker's own log", open=False, elem_id="worker-log") as worker_log:
            tail = gr.HTML()

    @shows_errors
    def read_log(seen: LiveRun) -> str:
        tail_text = log_tail(actions, seen.run)
        return f'<pre tabindex="0">{text(tail_text)}</pre>' if tail_text else empty("It is empty")

    worker_log.expand(read_log, live, tail, **VIEWER)


def _step_of(event: gr.EventData) -> int:
    """Untrusted, as everything that comes from a page."""
    words = picked(event)
    return int(words) if words.isdecimal() and len(words) < 10 else 0
