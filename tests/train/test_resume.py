"""A run that is killed, stopped or sliced gives the numbers of one that was not, to the last bit."""

import random
from pathlib import Path

import pytest
from tests.train.storm import Outcome, finish, kill_once, outcome, small_run

from qlora_space.events import Metric
from qlora_space.runs import read_events


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = small_run(tmp_path_factory.mktemp("reference"))
    finish(run)
    whole = outcome(run)
    assert [step for step, _ in whole.losses] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in whole.eval_losses] == [0, 3, 6]
    return whole


@pytest.mark.parametrize("trial", range(3))
def test_a_run_killed_at_any_moment_goes_on_exactly(
    reference: Outcome, tmp_path: Path, trial: int
) -> None:
    run = small_run(tmp_path)
    kill_once(run, random.Random(trial), seconds=2.0)
    finish(run)
    assert outcome(run) == reference


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trial", range(50))
def test_fifty_kills(reference: Outcome, tmp_path: Path, trial: int) -> None:
    run = small_run(tmp_path)
    kill_once(run, random.Random(1000 + trial), seconds=3.0)
    finish(run)
    assert outcome(run) == reference


def test_looking_less_often_trains_the_same(reference: Outcome, tmp_path: Path) -> None:
    run = small_run(tmp_path, eval_steps=100, save_steps=0, num_samples=2)
    finish(run)
    events, _ = read_events(run.events_file)
    losses = [
        (e.step, e.values["loss"]) for e in events if isinstance(e, Metric) and "loss" in e.values
    ]
    assert tuple(losses) == reference.losses
