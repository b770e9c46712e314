"""The page "Run": progress, charts, comparison with other runs, sample answers, and the log.

What happens in the run comes as a stream (stream.py, stream.js), which fills the empty pieces. Gradio has what a
person presses, and draws it anew when the run is in another state.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.export_panel import ExportPanel, build_export_panel, wire_export_panel
from qlora_space.app.ui.navigation import ON_ASK, parse_address, run_at
from qlora_space.app.ui.pieces import state_of
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render.changes import MAX_COMPARED
from qlora_space.app.ui.render.html import empty, text
from qlora_space.app.ui.render.samples import STEP_SLIDER
from qlora_space.app.ui.run_buttons import VIEWER, RunButtons, build_run_buttons, wire_run_buttons
from qlora_space.core.errors import RunError
from qlora_space.core.wording import age, without_folders
from qlora_space.runs import RunFolder, step_to_resume

_OPTIONS = [("Smooth", "smooth"), ("Log scale", "log")]
_LOG_BYTES = 20_000
_MAX_OTHER_RUNS = 50


@dataclass(frozen=True)
class RunPage:
    """The components that Python changes."""

    state: gr.HTML
    steps_shown: gr.Textbox
    others: gr.Dropdown
    buttons: RunButtons
    next_steps: gr.Row
    export: ExportPanel

    @property
    def outputs(self) -> list[Any]:
        own = [self.state, self.steps_shown, self.others, self.next_steps]
        return [*own, *self.export.outputs, *self.buttons.outputs]

    @property
    def again(self) -> gr.Button:
        return self.buttons.by_name["again"]

    @property
    def further(self) -> gr.Button:
        return self.buttons.by_name["further"]

    def opened(self, actions: Actions, run: RunFolder) -> dict[Component, Any]:
        """Everything that depends on which run it is."""
        found = other_runs(actions, run)
        others = gr.update(choices=found, value=[], visible=bool(found))
        return {self.others: others, self.steps_shown: ""} | self.updates(actions, run)

    def updates(self, actions: Actions, run: RunFolder) -> dict[Component, Any]:
        """What makes sense in the run's state."""
        view = actions.view(run)
        step = step_to_resume(run, view)
        state = text(state_of(run, view, step))
        return self.buttons.updates(run, view, step) | {
            self.state: f'<i data-run="{run.id}" data-state="{state}"></i>',
            self.next_steps: gr.update(visible=run.has_adapter and view.is_over),
            **self.export.updates(run),
        }


def build_run_page(actions: Actions, address: gr.Textbox, tabs: gr.Tabs) -> RunPage:
    """Lay out and wire the page inside the current tab."""
    gr.HTML(elem_id="run-head")
    state = gr.HTML(elem_id="run-state", js_on_load=ON_ASK)
    buttons = build_run_buttons(can_share=actions.settings.is_reachable)
    gr.HTML(elem_id="run-outcome")
    gr.HTML(elem_id="run-fork")
    next_steps = _next_steps(tabs)
    options, steps_shown, others = _charts()
    _samples()
    _log(actions, address)
    export = build_export_panel()
    page = RunPage(state, steps_shown, others, buttons, next_steps, export)
    refresh, outputs = _refresh(actions, page, address), [*page.outputs, address]
    state.click(refresh, address, outputs, trigger_mode="always_last", **VIEWER)
    gr.on(
        [options.change, others.change],
        None,
        [options, others],
        None,
        js="(names, others) => qlora.chooseView(names, others)",
        api_visibility="private",
    )

    @for_visitor(actions)
    def read_others(acting: Actions, query: str) -> dict[str, Any]:
        return gr.update(choices=other_runs(acting, run_at(acting, query)))

    wire_export_panel(actions, export, address)
    others.focus(read_others, address, others, **VIEWER)

    def refresh_after(then: Any) -> None:
        then(refresh, address, outputs, **VIEWER)

    wire_run_buttons(actions, buttons, address, refresh_after)
    return page


def other_runs(actions: Actions, run: RunFolder) -> list[tuple[str, str]]:
    """(label, id) of the runs that this one can be compared with, newest first."""
    found = [(other, view) for other, view in actions.runs() if view.metrics and other != run]
    return [
        (f"{other.name()}, {age(view.started_at)}", other.id)
        for other, view in found[:_MAX_OTHER_RUNS]
    ]


def _refresh(actions: Actions, page: RunPage, address: gr.Textbox) -> Any:
    @for_visitor(actions)
    def refresh(acting: Actions, query: str) -> dict[Any, Any]:
        run_id = parse_address(query).run_id
        if not run_id:
            return {page.state: gr.skip()}
        try:
            run = acting.run(run_id)
        except RunError:
            gr.Info("This run was deleted.")
            return {address: ""}
        return page.updates(acting, run)

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


def _charts() -> tuple[gr.CheckboxGroup, gr.Textbox, gr.Dropdown]:
    with gr.Column(elem_classes="sheet", elem_id="charts"):
        options = gr.CheckboxGroup(
            _OPTIONS, value=["smooth"], show_label=False, container=False, elem_id="chart-options"
        )
        gr.HTML(elem_id="charts-body")
        steps_shown = gr.Textbox(
            label="Steps shown",
            info="Drag in a chart to zoom in, double-click to see all; or type, such as 100-200.",
            placeholder="all",
            interactive=True,
            elem_id="steps-shown",
        )
        gr.HTML(elem_id="advice")
        others = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MAX_COMPARED,
            label="Compare with other runs",
            info=f"Up to {MAX_COMPARED}: their losses, and the settings that differ.",
            elem_id="others",
            visible=False,
        )
        gr.HTML(elem_id="overlay")
    return options, steps_shown, others


def _samples() -> None:
    with gr.Column(elem_classes="sheet", elem_id="samples-panel"):
        gr.HTML('<h3 class="panel-title">Sample answers</h3>')
        gr.HTML(elem_id="timeline")
        gr.HTML(STEP_SLIDER, elem_id="sample-step")
        gr.HTML(elem_id="samples")


def _log(actions: Actions, address: gr.Textbox) -> None:
    with gr.Column(elem_classes="sheet", elem_id="log-panel"):
        gr.HTML(render_run.LOG_TITLE)
        gr.HTML(elem_id="log")
        with gr.Accordion("Full process log", open=False, elem_id="worker-log") as worker_log:
            tail = gr.HTML()

    @for_visitor(actions)
    def read_log(acting: Actions, query: str) -> str:
        tail_text = log_tail(acting, run_at(acting, query))
        return f'<pre tabindex="0">{text(tail_text)}</pre>' if tail_text else empty("It is empty")

    worker_log.expand(read_log, address, tail, **VIEWER)


def log_tail(actions: Actions, run: RunFolder) -> str:
    """The end of worker.log, without the server's folders."""
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, run.log_file.stat().st_size - _LOG_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return without_folders(tail.replace(str(actions.settings.home), "…"))
