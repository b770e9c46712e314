"""What a refresh of a tab draws, and what it leaves alone."""

from typing import Any

import gradio as gr

from qlora_space.app.ui.live import open_run
from qlora_space.app.ui.run_page import RunPage, _refresh, build_run_page
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
    drawn = refresh(live, [], 0, None, f"?run={other.id}")
    assert list(drawn) == [page.live]
    assert drawn[page.live] == gr.skip()
    assert page.pieces["head"] in refresh(live, [], 0, None, f"?run={one.id}")
