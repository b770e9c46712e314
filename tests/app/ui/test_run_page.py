"""What a refresh of a tab draws, and what it leaves alone."""

from typing import Any

import gradio as gr
import pytest

from qlora_space.app.ui.live import open_run
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.run_page import RunPage, _refresh, build_run_page, parse_steps
from qlora_space.core.events import Metric, Note
from tests.app.ui.fake import FakeActions, scripted_run


def run_page(actions: FakeActions) -> tuple[RunPage, Any]:
    with gr.Blocks(), gr.Tabs() as tabs:
        address = gr.Textbox()
        page = build_run_page(actions, address, tabs)
    return page, _refresh(actions, page, address)


def test_a_refresh_of_one_run_draws_nothing_while_another_is_being_opened(
    actions: FakeActions,
) -> None:
    one, other = (scripted_run(actions, name, "finished") for name in "ab")
    page, refresh = run_page(actions)
    live = open_run(actions, one)
    drawn = refresh(gr.Request(), None, live, [], "", 0, None, f"?run={other.id}")
    assert list(drawn) == [page.live]
    assert drawn[page.live] == gr.skip()
    assert page.pieces["head"] in refresh(
        gr.Request(), None, live, [], "", 0, None, f"?run={one.id}"
    )


@pytest.mark.parametrize(
    ("written", "steps"),
    [("100-200", (100, 200)), (" 3 to 9 ", (3, 9)), ("", None), ("9-3", None), ("a-b", None)],
)
def test_the_steps_that_are_shown_can_be_typed(written: str, steps: tuple[int, int] | None) -> None:
    assert parse_steps(written) == steps


def test_the_log_has_a_readable_line_for_each_step_and_keeps_old_warnings() -> None:
    warning = Note(seq=0, level="warning", text="Free memory is low.")
    values = {"loss": 0.5321, "learning_rate": 2e-4, "tokens_per_second": 3400.0}
    steps = [Metric(seq=i, step=i, total_steps=900, values=values) for i in range(1, 901)]
    markup = render_run.log([warning, *steps])
    assert "Step 900 of 900: loss 0.532, learning rate 2e-4, 3.4k tok/s." in markup
    assert "Free memory is low." in markup
    assert markup.count("<li") == 301
