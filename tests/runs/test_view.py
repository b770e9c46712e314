from qlora_space.events import Cancelled, Event, Failed, Finished, Metric, Phase, Started
from qlora_space.runs import fold


def started() -> Started:
    return Started(place="CPU", pid=1, pid_start_time=1.0)


def metric(step: int, time: float, loss: float = 1.0) -> Metric:
    return Metric(step=step, total_steps=10, values={"loss": loss}, time=time)


def test_status_follows_the_events() -> None:
    story: list[tuple[Event, str]] = [
        (started(), "preparing"),
        (Phase(name="data", done=0, total=1), "preparing"),
        (Phase(name="train", done=0, total=10), "training"),
        (metric(1, 1.0), "training"),
        (Phase(name="report", done=0, total=1), "finishing"),
        (Finished(step=10), "finished"),
    ]
    view = fold([])
    assert view.status == "queued"
    for event, status in story:
        assert fold([event], view).status == status
    assert view.is_over


def test_folding_piecewise_equals_folding_at_once() -> None:
    events: list[Event] = [
        started(),
        *[metric(i, float(i)) for i in range(1, 9)],
        Failed(cause="x", hint="y"),
    ]
    view = fold([])
    for event in events:
        fold([event], view)
    assert view == fold(events)


def test_a_resumed_run_keeps_the_last_value_of_a_step_done_twice() -> None:
    view = fold(
        [
            started(),
            metric(1, 1, 5.0),
            metric(2, 2, 4.0),
            Failed(cause="x", hint=""),
            started(),
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
