"""The page "Run": progress, charts, comparison with other runs, sample answers, and the log.

The page is made of pieces of HTML; `refresh` sends those that differ from what the tab shows.
"""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.live import LiveRun, log_tail
from qlora_space.app.ui.navigation import build_pick_list, parse_address, picked
from qlora_space.app.ui.render import changes as render_changes
from qlora_space.app.ui.render import low_bit as render_low_bit
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render import samples as render_samples
from qlora_space.app.ui.render.changes import MAX_COMPARED
from qlora_space.app.ui.render.charts import Steps
from qlora_space.app.ui.render.html import empty, notice, text
from qlora_space.app.ui.run_buttons import VIEWER, RunButtons, build_run_buttons, wire_run_buttons
from qlora_space.core.machine import is_shared
from qlora_space.core.wording import without_folders
from qlora_space.runs import advice, ended_early, slowdown

_OPTIONS = [("Smooth", "smooth"), ("Log scale", "log")]
_STEPS = re.compile(r"\s*(\d{1,9})\s*(?:-|–|to)\s*(\d{1,9})\s*")
_REFRESH_SECONDS = 1.0
_REFRESH_SECONDS_OVER = 5.0  # another tab may resume, rename or delete it


@dataclass(frozen=True)
class RunPage:
    """The components that change while a run is watched."""

    live: gr.State
    timer: gr.Timer
    pieces: dict[str, gr.HTML]
    options: gr.CheckboxGroup
    steps_shown: gr.Textbox
    step: gr.Slider
    others: gr.Dropdown
    buttons: RunButtons
    next_steps: gr.Row

    @property
    def outputs(self) -> list[Any]:
        rest = [
            self.live,
            self.timer,
            self.steps_shown,
            self.step,
            self.others,
            *self.buttons.outputs,
            self.next_steps,
        ]
        return [*self.pieces.values(), *rest]

    @property
    def inputs(self) -> list[Any]:
        return [self.live, self.options, self.steps_shown, self.step, self.others]

    @property
    def again(self) -> gr.Button:
        return self.buttons.by_name["again"]

    def updates(
        self, live: LiveRun, options: Sequence[str], shown: Steps | None, step: float
    ) -> dict[Component, Any]:
        """What differs from what the tab shows: sending all of it would make the page flicker."""
        steps = render_samples.sample_steps(live.view)
        is_at_end = step >= (live.shown_sample_steps[-1] if live.shown_sample_steps else 0)
        at = steps[-1] if steps and is_at_end else int(step)
        changed = live.changed(_pieces(live, options, shown, at))
        updates: dict[Any, Any] = {self.pieces[name]: piece for name, piece in changed.items()}
        if steps != live.shown_sample_steps:
            live.shown_sample_steps = steps
            updates[self.step] = gr.update(
                maximum=max([*steps, 1]), value=at, visible=len(steps) > 1
            )
        stop_request = live.run.stop_request()
        state = (live.view.status, live.view.attempts, live.resume_step, stop_request)
        if live.shown_state != state:
            live.shown_state = state
            over = live.view.is_over
            seconds = _REFRESH_SECONDS_OVER if over else _REFRESH_SECONDS
            updates |= self.buttons.updates(live) | {
                self.timer: gr.Timer(seconds, active=True),
                self.next_steps: gr.update(visible=live.run.has_adapter and over),
            }
        return updates or {self.live: gr.skip()}  # Gradio accepts no empty dict


def build_run_page(actions: Actions, address: gr.Textbox, tabs: gr.Tabs) -> RunPage:
    """Lay out and wire the page inside the current tab."""
    pieces = {"head": gr.HTML(elem_id="run-head")}
    buttons = build_run_buttons()
    pieces["outcome"] = gr.HTML(elem_id="run-outcome")
    pieces["fork"] = gr.HTML(elem_id="run-fork")
    next_steps = _next_steps(tabs)
    options, steps_shown, others = _charts(pieces)
    step = _samples(pieces)
    live, timer = gr.State(None), gr.Timer(_REFRESH_SECONDS, active=False)
    page = RunPage(live, timer, pieces, options, steps_shown, step, others, buttons, next_steps)
    _log(actions, pieces, live)
    refresh = _refresh(actions, page, address)
    outputs = [*page.outputs, address]
    inputs = [*page.inputs, address]
    changes = [timer.tick, options.change, steps_shown.input, others.change]
    gr.on(changes, refresh, inputs, outputs, **VIEWER)
    step.input(refresh, inputs, outputs, trigger_mode="always_last", **VIEWER)
    chosen = pieces["timeline"].click(_step_of, None, step, **VIEWER)
    chosen.then(refresh, inputs, outputs, **VIEWER)
    others.focus(
        for_visitor(actions)(lambda acting, seen: gr.update(choices=seen.other_runs(acting))),
        live,
        others,
        **VIEWER,
    )

    def refresh_after(then: Any) -> None:
        then(refresh, inputs, outputs, **VIEWER)

    wire_run_buttons(actions, buttons, live, address, refresh_after)
    return page


def _refresh(actions: Actions, page: RunPage, address: gr.Textbox) -> Any:
    @for_visitor(actions)
    def refresh(
        acting: Actions,
        live: LiveRun | None,
        options: list[str],
        steps_shown: str,
        step: float,
        compared: list[str] | None,
        query: str,
    ) -> dict[Any, Any]:
        if live is None:
            return {page.timer: gr.Timer(active=False)}
        if parse_address(query).run_id != live.run.id:  # another run is being opened
            return {page.live: gr.skip()}
        if not live.run.path.exists():
            gr.Info("This run was deleted.")
            return {page.timer: gr.Timer(active=False), address: ""}
        live.advance(acting)
        live.compare_with(acting, compared or [])
        return page.updates(live, options, parse_steps(steps_shown), step)

    return refresh


def _next_steps(tabs: gr.Tabs) -> gr.Row:
    with gr.Row(visible=False, elem_id="next-steps") as row:
        compare = gr.Button(
            "Compare with the base", variant="primary", scale=0, min_width=230, size="md"
        )
        publish = gr.Button("Publish to the Hub", scale=0, min_width=230, size="md")
    for button, name in ((compare, "compare"), (publish, "publish")):
        button.click(lambda name=name: gr.Tabs(selected=name), None, tabs, **VIEWER)
    return row


def _charts(pieces: dict[str, gr.HTML]) -> tuple[gr.CheckboxGroup, gr.Textbox, gr.Dropdown]:
    with gr.Column(elem_classes="sheet", elem_id="charts"):
        options = gr.CheckboxGroup(
            _OPTIONS, value=["smooth"], show_label=False, container=False, elem_id="chart-options"
        )
        pieces["charts"] = gr.HTML(elem_id="charts-body")
        steps_shown = gr.Textbox(
            label="Steps shown",
            info="Drag in a chart to zoom in, double-click to see all; or type, such as 100-200.",
            placeholder="all",
            elem_id="steps-shown",
        )
        pieces["advice"] = gr.HTML(elem_id="advice")
        others = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MAX_COMPARED,
            label="Compare with other runs",
            info=f"Up to {MAX_COMPARED}: their losses, and the settings that differ.",
            elem_id="others",
            visible=False,
        )
        pieces["overlay"] = gr.HTML(elem_id="overlay")
    return options, steps_shown, others


def _samples(pieces: dict[str, gr.HTML]) -> gr.Slider:
    with gr.Column(elem_classes="sheet", elem_id="samples-panel"):
        gr.HTML('<h3 class="panel-title">Sample answers</h3>')
        pieces["timeline"] = build_pick_list("", elem_id="timeline")
        step = gr.Slider(
            0, 1, value=0, step=1, label="Step", visible=False, elem_id="sample-step", buttons=[]
        )
        pieces["samples"] = gr.HTML(elem_id="samples")
    return step


def _log(actions: Actions, pieces: dict[str, gr.HTML], live: gr.State) -> None:
    with gr.Column(elem_classes="sheet", elem_id="log-panel"):
        gr.HTML(render_run.LOG_TITLE)
        pieces["log"] = gr.HTML(elem_id="log")
        with gr.Accordion("Full process log", open=False, elem_id="worker-log") as worker_log:
            tail = gr.HTML()

    @for_visitor(actions)
    def read_log(acting: Actions, seen: LiveRun) -> str:
        tail_text = log_tail(acting, seen.run)
        return f'<pre tabindex="0">{text(tail_text)}</pre>' if tail_text else empty("It is empty")

    worker_log.expand(read_log, live, tail, **VIEWER)


def _step_of(event: gr.EventData) -> int:
    """The step of a button of the timeline; untrusted."""
    value = picked(event)
    return int(value) if value.isdecimal() and len(value) < 10 else 0


def parse_steps(written: str) -> Steps | None:
    """'100-200' as (100, 200); None, for all, of anything else."""
    match = _STEPS.fullmatch(written)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    return (first, last) if first < last else None


def _pieces(
    live: LiveRun, options: Sequence[str], shown: Steps | None, step: int
) -> dict[str, str]:
    """The page as HTML, by name; `step` is that of the answers that are shown."""
    view, name = live.view, live.run.name()
    remark = advice(view, live.plan)
    plan = live.plan
    slow = slowdown(view, plan, lambda: is_shared(plan.hardware.device, plan.num_processes))
    return {
        "head": render_run.head(name, live.plan, view, live.queue_position),
        "outcome": _outcome(live) + (render_low_bit.gate(view.gate) if view.gate else ""),
        "fork": _fork(live),
        "charts": render_run.charts(view, options, shown),
        "advice": "".join(notice("info", words) for words in (slow, remark) if words),
        "overlay": _overlay(live, name, options),
        "timeline": render_samples.timeline(view, step),
        "samples": render_samples.samples(view, step),
        "log": render_run.log(live.events),
    }


def _outcome(live: LiveRun) -> str:
    view = live.view
    if stalled := view.stalled_for(time.time()):
        return render_run.stalled(stalled)
    if live.queue_position and live.queue_position.stalled and view.status == "queued":
        hint = "Stop it, and this one moves up."
        return notice(
            "warning", f"“{live.queue_position.stalled}” has the machine and is stalled.", hint
        )
    if view.failure is not None:
        return render_run.failure(view.failure)
    if view.phase is not None and view.phase.name == "disk" and not view.is_over:
        return _full_disk(live)
    if view.warning:
        return notice("warning", without_folders(view.warning))
    if view.status == "cancelled":
        return notice("info", "This run was stopped and its adapter discarded.")
    if view.status == "paused":
        hint = "Resume goes on as if nothing had happened."
        return notice("info", f"Paused at step {view.step:,}; everything is saved.", hint)
    why = ended_early(view, live.plan)
    report = live.run.report() if view.status == "finished" else None
    return (notice("info", why) if why else "") + (render_run.result(report) if report else "")


def _full_disk(live: LiveRun) -> str:
    """The adapter is smaller than a checkpoint, so a checkpoint's size is enough."""
    needed = live.view.checkpoints[-1].num_bytes if live.view.checkpoints else 0
    missing = max(0, needed - shutil.disk_usage(live.run.path).free)
    hint = f"Free {missing:,} bytes or more: it tries again every few seconds, and nothing is lost."
    return notice("warning", "The disk is full, so the adapter is not saved yet.", hint)


def _fork(live: LiveRun) -> str:
    """What differs from the run that this one was made from, while that one exists."""
    if live.origin is None or not live.origin.path.exists():
        return ""
    return render_changes.fork(live.origin.name(), live.origin.plan(), live.plan)


def _overlay(live: LiveRun, name: str, options: Sequence[str]) -> str:
    me = render_changes.ComparedRun(name, live.plan, live.view)
    return render_changes.overlay([me, *live.compared], options) if live.compared else ""
