"""All held-out prompts as one batch: a table that is sorted and filtered, and opens each prompt side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.comparing import compare_and_keep
from qlora_space.app.ui.ask_panel import PRIVATE, AskPanel
from qlora_space.app.ui.boundary import for_visitor, shows_errors
from qlora_space.app.ui.compare_settings import CompareSettings
from qlora_space.app.ui.navigation import build_pick_list, picked, run_at
from qlora_space.app.ui.render.compare import badge
from qlora_space.app.ui.render.compare_table import (
    FILTERS,
    ORDERS,
    Order,
    Which,
    answering,
    rows_table,
    summary,
)
from qlora_space.app.ui.render.html import notice
from qlora_space.core.comparison import Answered, Kept, Loading
from qlora_space.core.errors import QloraSpaceError
from qlora_space.runs import RunFolder
from qlora_space.runs.comparisons import Comparison, find_comparison

_Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class HeldoutPanel:
    run: gr.Button
    count: gr.Slider
    halt: gr.Button
    status: gr.HTML
    controls: gr.Row
    order: gr.Dropdown
    which: gr.Dropdown
    table: gr.HTML
    kept: gr.State  # the comparison that is shown, or None

    @property
    def outputs(self) -> list[Component]:
        """What `opened` fills."""
        return [self.run, self.count, *self._shown, self.halt]

    @property
    def _shown(self) -> list[Any]:
        return [self.status, self.controls, self.order, self.which, self.table, self.kept]

    def opened(self, acting: Actions, run: RunFolder, kept: Comparison | None) -> _Outputs:
        """With a comparison of many prompts that was kept; None: empty."""
        rows = len(acting.heldout_questions(run))
        count = gr.update(maximum=max(rows, 2), value=max(rows, 1), visible=rows > 1)
        button = gr.update(
            value="Run held-out prompts" if rows else "No held-out prompts",
            interactive=rows > 0,
        )
        return button, count, *shown_table(kept), gr.update(visible=False)


def shown_table(kept: Comparison | None) -> _Outputs:
    """Values of status, controls, order, filter, table and state."""
    controls = gr.update(visible=kept is not None)
    if kept is None:
        return "", controls, "data", "all", "", None
    status = badge(kept.done) + summary(kept.done, kept.line.labels)
    return status, controls, "data", "all", rows_table(kept), kept


def build_heldout_panel() -> HeldoutPanel:
    with gr.Column(elem_classes="sheet", elem_id="heldout-panel"):
        gr.HTML(
            '<p class="hint">Every row that the run was not trained on, as one batch. An answer is cut at twice the '
            "length of the expected one.</p>"
        )
        count = gr.Slider(
            1, 2, value=1, step=1, label="How many, from the first", elem_id="heldout-count"
        )
        with gr.Row(elem_id="heldout-buttons"):
            run = gr.Button(
                "Run held-out prompts",
                variant="primary",
                elem_id="run-heldout",
                scale=0,
                min_width=220,
                size="md",
            )
            halt = gr.Button(
                "Stop", elem_id="halt-heldout", scale=0, min_width=100, size="md", visible=False
            )
        status = gr.HTML(elem_id="heldout-status")
        with gr.Row(visible=False, elem_id="heldout-controls") as controls:
            order = gr.Dropdown(
                ORDERS, value="data", label="Order", elem_id="heldout-order", min_width=240
            )
            which = gr.Dropdown(
                FILTERS, value="all", label="Show", elem_id="heldout-filter", min_width=180
            )
        table = build_pick_list("", elem_id="heldout-table")
    return HeldoutPanel(run, count, halt, status, controls, order, which, table, gr.State(None))


def wire_heldout_panel(
    actions: Actions,
    address: gr.Textbox,
    panel: HeldoutPanel,
    settings: CompareSettings,
    opened: gr.Textbox,
    ask: AskPanel,
    ways: gr.Tabs,
) -> None:
    """`opened`: id of the comparison that is shown, which is in the URL."""
    shown = [panel.status, panel.controls, panel.order, panel.which, panel.table, panel.kept]

    @for_visitor(actions)
    def answer_all(acting: Actions, query: str, count: float, *values: Any) -> Iterator[_Outputs]:
        run, options = run_at(acting, query), settings.options(values)
        questions = acting.heldout_questions(run)[: int(count)]
        if not questions:
            raise QloraSpaceError("This run holds no rows out.", "Start one with held-out rows.")
        skipped = [gr.skip()] * 5
        yield notice("info", "Sending the prompts …"), *skipped, gr.skip(), gr.update(visible=True)
        for reply in compare_and_keep(acting, run, questions, options):
            match reply:
                case Loading(text=activity):
                    yield notice("info", activity), *skipped, gr.skip(), gr.skip()
                case Answered(done=done, total=total):
                    yield answering(done, total), *skipped, gr.skip(), gr.skip()
                case Kept(id=kept):
                    found = find_comparison(run, kept)
                    yield *shown_table(found), kept, gr.update(visible=False)

    outputs = [*shown, opened, panel.halt]
    inputs = [address, panel.count, *settings.fields]
    running = panel.run.click(answer_all, inputs, outputs, concurrency_limit=8, **PRIVATE)
    running.failure(_settle, None, [panel.status, panel.halt], **PRIVATE)
    stopped = [panel.status, panel.halt]
    panel.halt.click(_stopped, None, stopped, cancels=[running], **PRIVATE)
    for choice in (panel.order, panel.which):
        seen = [panel.kept, panel.order, panel.which]
        choice.input(shows_errors(_arrange), seen, panel.table, **PRIVATE)
    _wire_rows(panel, ask, ways)


def _wire_rows(panel: HeldoutPanel, ask: AskPanel, ways: gr.Tabs) -> None:
    """A row that is picked is opened side by side, without being asked again."""

    @shows_errors
    def open_row(event: gr.EventData, kept: Comparison | None) -> _Outputs:
        number = picked(event)
        if kept is None or not number.isdecimal() or int(number) >= len(kept.done.rows):
            return (*[gr.skip()] * len(ask.outputs), gr.skip())
        return *ask.opened(kept, int(number)), gr.Tabs(selected="one")

    panel.table.click(open_row, panel.kept, [*ask.outputs, ways], **PRIVATE)


def _arrange(kept: Comparison | None, order: Order, which: Which) -> str:
    return rows_table(kept, order, which) if kept else ""


def _settle() -> _Outputs:
    return "", gr.update(visible=False)


def _stopped() -> _Outputs:
    return notice("info", "Stopped."), gr.update(visible=False)
