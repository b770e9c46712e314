import dataclasses
import random
from pathlib import Path

import pytest

from qlora_space.core.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Heartbeat,
    Metric,
    Phase,
    Rollback,
    Sample,
    Started,
)
from qlora_space.runs import EventLog, RunFolder, fold, view_of


def started(resume_step: int = 0) -> Started:
    return Started(place="CPU", pid=1, pid_start_time=1.0, resume_step=resume_step)


def metric(step: int, time: float, loss: float = 1.0) -> Metric:
    return Metric(step=step, total_steps=10, values={"loss": loss}, time=time)


def test_status_follows_the_events() -> None:
    steps: list[tuple[Event, str]] = [
        (started(), "preparing"),
        (Phase(name="data", done=0, total=1), "preparing"),
        (Phase(name="train", done=0, total=10), "training"),
        (metric(1, 1.0), "training"),
        (Phase(name="report", done=0, total=1), "finishing"),
        (Finished(step=10), "finished"),
    ]
    view = fold([])
    assert view.status == "queued"
    for event, status in steps:
        view = fold([event], view)
        assert view.status == status
    assert view.is_over


def test_steps_are_those_of_the_prepared_data_before_the_first_one_is_done() -> None:
    loading = fold([Phase(name="data", done=1, total=900), Phase(name="model", done=1, total=1)])
    assert loading.total_steps == 0
    assert fold([Phase(name="train", done=0, total=417)], loading).total_steps == 417


def test_folding_piecewise_equals_folding_at_once() -> None:
    events: list[Event] = [
        started(),
        *[metric(i, float(i)) for i in range(1, 9)],
        Failed(cause="x", hint="y"),
    ]
    view = fold([])
    for event in events:
        before, copy = view, dataclasses.replace(view)
        view = fold([event], view)
        assert before == copy
    assert view == fold(events)
    assert fold([], view) is view


def test_a_view_is_shared_and_cannot_be_changed() -> None:
    view = fold([started(), metric(1, 1.0)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.step = 2  # type: ignore[misc]
    assert isinstance(view.metrics, tuple)


def test_a_resumed_run_keeps_the_last_value_of_a_step_done_twice() -> None:
    view = fold(
        [
            started(),
            metric(1, 1, 5.0),
            metric(2, 2, 4.0),
            Failed(cause="x", hint=""),
            started(resume_step=1),
            metric(2, 9, 3.0),
        ]
    )
    assert view.series("loss") == [(1, 5.0), (2, 3.0)]
    assert view.failure is None
    assert view.attempts == 2


def test_eta_counts_the_pauses_for_evaluations() -> None:
    times = [1.0, 5.0, 6.0, 7.0, 11.0, 12.0]  # a slow first step, an evaluation after the fourth
    events: list[Event] = [started(), Phase(name="train", done=0, total=10)]
    view = fold([*events, *[metric(i + 1, t) for i, t in enumerate(times)]])
    assert view.seconds_per_step == 7 / 4
    assert view.eta_seconds == 7.0


def test_there_is_no_eta_before_three_steps_nor_after_the_end() -> None:
    view = fold([started(), Phase(name="train", done=0, total=10), metric(1, 1.0)])
    assert view.eta_seconds is None
    assert fold([metric(2, 2.0), Cancelled(step=2)], view).eta_seconds is None


def training(*more: Event) -> list[Event]:
    steps = [metric(i, float(i)) for i in range(1, 9)]
    return [started(), Phase(name="train", done=0, total=10), *steps, *more]


def test_a_curve_goes_back_with_a_rollback_and_a_resume() -> None:
    view = fold(training(Rollback(step=8, to_step=5, why="x", learning_rate=1.0, time=9.0)))
    assert [step for step, _ in view.series("loss")] == [1, 2, 3, 4, 5]
    view = fold([metric(6, 10.0, 7.0), Failed(cause="x", hint=""), started(resume_step=4)], view)
    assert [step for step, _ in view.series("loss")] == [1, 2, 3, 4]
    assert view.step == 4
    assert len(view.rollbacks) == 1


def test_a_resume_from_an_older_checkpoint_than_announced_leaves_nothing_twice() -> None:
    def sample(step: int) -> Sample:
        return Sample(step=step, prompt="p", expected="e", text="t")

    first = training(sample(4), sample(8), Failed(cause="x", hint=""))
    view = fold([*first, started(resume_step=8), metric(3, 20.0, 7.0), metric(4, 21.0), sample(4)])
    assert view.series("loss")[2:] == [(3, 7.0), (4, 1.0)]
    assert [s.step for s in view.samples] == [4]


def test_a_silent_run_is_stalled_after_45_seconds() -> None:
    view = fold(training())
    assert view.stalled_for(8 + 44) == ""
    assert view.stalled_for(8 + 50) == "not heard of for 50 s: stopped or frozen"


def test_a_run_that_lives_without_progress_is_stalled_after_a_minute() -> None:
    view = fold(training(Heartbeat(idle_seconds=50.0, time=58.0)))
    assert view.stalled_for(59.0) == ""
    assert "nothing got done for 60 s" in view.stalled_for(58.0 + 12)
    view = fold([metric(9, 71.0)], view)
    assert view.stalled_for(72.0) == ""


def test_slow_steps_and_long_loads_are_not_called_stuck() -> None:
    slow: list[Event] = [started(), Phase(name="train", done=0, total=10)]
    slow += [metric(i, 20.0 * i) for i in range(1, 6)]
    view = fold([*slow, Heartbeat(idle_seconds=150.0, time=250.0)])
    assert view.stalled_for(251.0) == ""
    loading = fold([started(), Phase(name="model", done=0, total=1)])
    loading = fold([Heartbeat(idle_seconds=300.0, time=301.0)], loading)
    assert loading.stalled_for(302.0) == ""


def test_a_run_that_is_over_is_never_stalled() -> None:
    assert fold(training(Finished(step=10, time=9.0))).stalled_for(1e9) == ""


def test_curves_of_a_run_that_grows_are_those_of_all_its_events() -> None:
    chance = random.Random(1)
    events: list[Event] = [started()]
    view = fold(events)
    for _ in range(300):
        step = max(1, view.step + chance.choice([1, 1, 1, 1, 1, 2, 0, -3]))
        name = chance.choice(["loss", "loss", "loss", "eval_loss", "grad_norm"])
        event: Event = Metric(step=step, total_steps=900, values={name: chance.random()})
        if chance.random() < 0.03:
            event = Rollback(step=step, to_step=max(0, step - 5), why="x", learning_rate=1.0)
        events.append(event)
        view = fold([event], view)
        whole = fold(events)
        for curve in ("loss", "eval_loss", "grad_norm"):
            assert view.series(curve) == whole.series(curve)


def test_the_view_of_a_file_follows_it_also_when_it_becomes_another_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert view_of(run).num_events == 0
    log = EventLog(run.events_file)
    log.append(started())
    assert view_of(run).num_events == 1
    for step in range(1, 6):
        log.append(metric(step, 0.0))
        assert view_of(run).step == step
    assert view_of(run) is view_of(run)
    lines = run.events_file.read_text().replace('"step":5', '"step":7')
    run.events_file.write_text(lines)  # the same file, as long as before
    assert view_of(run).step == 7
    run.events_file.write_text(lines.partition("\n")[0] + "\n")
    assert view_of(run).step == 0
