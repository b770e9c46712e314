"""A run in slices is the run without them, to the last bit, whether each slice starts anew or finds the base loaded."""

from pathlib import Path

import pytest

from qlora_space.core.events import Event
from qlora_space.core.interruption import Interruption
from qlora_space.runs import EventLog, RunFolder
from qlora_space.train.slices import SliceEnd, SliceTrainer, prepare_for_slices
from tests.train.small import STEPS, Outcome, events_of, go_on, outcome, small_plan, small_run


class EndAfter:
    """The end of a slice, wanted at the nth forward pass of it."""

    def __init__(self, passes: int) -> None:
        self.left = passes

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = small_run(tmp_path_factory.mktemp("reference"))
    go_on(run)
    return outcome(run)


def in_slices(run: RunFolder, passes: int, *, is_kept: bool) -> list[str]:
    """Kinds of the slices' ends."""
    log, trainer, ends = EventLog(run.events_file), SliceTrainer(), []
    prepare_for_slices(run, log.append, None, Interruption())
    while "finished" not in ends:
        trainer = trainer if is_kept else SliceTrainer()
        end = SliceEnd(at=2e10, is_wanted=EndAfter(passes))
        ends.append(trainer.train(run, log.append, end, lambda: None).kind)
        assert len(ends) < 20
    log.close()
    return ends


@pytest.mark.usefixtures("metrics_mode")
@pytest.mark.parametrize("is_kept", [True, False], ids=["base kept", "base loaded anew"])
def test_five_slices_and_more_are_one_run(
    reference: Outcome, tmp_path: Path, is_kept: bool
) -> None:
    run = small_run(tmp_path, small_plan(save_steps=0))
    ends = in_slices(run, passes=5, is_kept=is_kept)
    assert len(ends) >= 5
    assert set(ends[:-1]) == {"paused"}
    assert outcome(run) == reference
    steps = [e.step for e in events_of(run) if e.kind == "metric" and "loss" in e.values]
    assert steps == list(range(1, STEPS + 1)), "nothing was done twice"


def test_a_base_that_is_kept_is_loaded_once_and_the_log_says_nothing_twice(tmp_path: Path) -> None:
    for name, is_kept in (("kept", True), ("anew", False)):
        run = small_run(tmp_path / name)
        in_slices(run, passes=9, is_kept=is_kept)
        events = events_of(run)
        loads = [e for e in events if e.kind == "phase" and e.name == "model" and e.done == 0]
        assert (len(loads) == 1) == is_kept
        notes = [e.text for e in events if e.kind == "note"]
        assert len(notes) == len(set(notes))


def test_a_slice_ends_at_its_time(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    log = EventLog(run.events_file)
    ending: Event = SliceTrainer().train(run, log.append, SliceEnd(at=0.0), lambda: None)
    log.close()
    assert (ending.kind, ending.why) == ("paused", "deadline")


def test_another_run_takes_the_place_of_the_one_that_is_kept(
    reference: Outcome, tmp_path: Path
) -> None:
    trainer = SliceTrainer()
    first, second = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    for run, passes in ((first, 9), (second, 9), (first, 999), (second, 999)):
        log = EventLog(run.events_file)
        trainer.train(run, log.append, SliceEnd(2e10, EndAfter(passes)), lambda: None)
        log.close()
    assert outcome(first) == outcome(second) == reference
