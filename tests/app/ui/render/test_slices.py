"""What the page of a run on ZeroGPU says while it trains, between its slices and after."""

import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from qlora_space.app.ui.page import build_page
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render.html import status_chip
from qlora_space.app.ui.run_page import build_run_page
from qlora_space.core.events import Event, Metric, Paused, Phase, Slice, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.runs import EventLog, RunView, create_run, fold
from tests.app.ui.fake import FakeActions


def in_slices(*last: Event) -> RunView:
    """A run on ZeroGPU in its third slice of about eight, and what came then."""
    metrics = [Metric(step=i, total_steps=9, values={"loss": 1.0}, time=100.0 + i) for i in (1, 2)]
    third = Slice(number=3, state="runs", seconds=60, to_go=6, time=90.0)
    started = Started(place="A GPU, lent by ZeroGPU", pid=1, pid_start_time=0.0, time=80.0)
    train = Phase(name="train", done=0, total=9)
    return fold([started, third, train, *metrics, *last])


def test_a_run_in_slices_says_which_it_is_and_what_it_asks_of_its_owner() -> None:
    view = in_slices()
    assert "Slice 3 of about 8" in render_run.progress(view)
    assert "Keep this page open" in render_run.slices(view)
    assert "6 slices to go" in render_run.slices(view)
    waiting = in_slices(Slice(number=4, state="waits_for_tab"))
    assert waiting.status == "waiting"
    assert "Between slices" in status_chip(replace(waiting, last_at=time.time()))
    assert "Slice 4 begins when the page of this run is open" in render_run.progress(waiting)


def test_a_run_in_slices_that_is_over_asks_for_nothing() -> None:
    view = in_slices(Paused(step=2, why="quota", goes_on="Try again in 5 h 12 min."))
    assert (view.slice, view.pause and view.pause.goes_on) == (None, "Try again in 5 h 12 min.")
    assert render_run.slices(view) == ""


def test_the_speed_of_a_run_in_slices_is_that_of_its_last_slice() -> None:
    """An hour between two slices is no part of a step."""
    later = [
        Metric(step=i, total_steps=9, values={"loss": 1.0}, time=4000.0 + 2 * i) for i in (3, 4, 5)
    ]
    fourth = Slice(number=4, state="runs", seconds=60, time=3990.0)
    view = in_slices(fourth, Phase(name="train", done=2, total=9), *later)
    assert view.seconds_per_step == 2.0


def test_a_spent_quota_leaves_a_button_to_go_on(tmp_path: Path) -> None:
    actions = FakeActions(Settings(home=tmp_path), step_seconds=0.0, num_steps=4)
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab():
        page = build_run_page(actions, gr.Textbox(), tabs)
    plan = actions.plan(TrainingRequest())
    for why, label in (("quota", "Go on from step 7"), ("signal", "Resume from step 7")):
        run = create_run(actions.settings.runs_folder, TrainingRequest(), plan)
        run.checkpoint_folder(7).mkdir(parents=True)
        (run.checkpoint_folder(7) / "state.json").write_text("{}")
        log = EventLog(run.events_file)
        log.append(Started(place="A GPU", pid=1, pid_start_time=0.0))
        log.append(Paused(step=7, why=why))
        log.close()
        assert page.updates(actions, run)[page.buttons.by_name["resume"]]["value"] == label


@pytest.mark.parametrize("is_zero_gpu", [True, False])
def test_only_where_gpus_are_lent_does_a_tab_say_that_it_is_open(
    tmp_path: Path, is_zero_gpu: bool
) -> None:
    actions = FakeActions(Settings(home=tmp_path, is_zero_gpu=is_zero_gpu))
    config = build_page(actions).config
    ticks = [d for d in config["dependencies"] if [t[1] for t in d["targets"]] == ["tick"]]
    assert len(ticks) == is_zero_gpu
