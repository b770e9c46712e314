"""Seconds and tokens per second from step to step, on a clock that is set by hand."""

import pytest

from qlora_space.train import metrics
from qlora_space.train.metrics import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


def test_what_is_done_between_steps_is_not_counted(clock: Clock) -> None:
    it = Throughput()
    it.start_step(tokens_seen=50)
    clock.now += 2
    assert it.end_step(tokens_seen=150) == 2
    clock.now += 4
    assert it.end_step(tokens_seen=250) == 4
    assert it.tokens_per_second == 25
    clock.now += 60  # an evaluation, with no step under way
    it.start_step(tokens_seen=250)
    clock.now += 1
    assert it.end_step(tokens_seen=350) == 1


def test_an_evaluation_during_a_step_is_not_counted_as_the_steps_time(clock: Clock) -> None:
    it = Throughput()
    it.start_step(tokens_seen=0)
    clock.now += 2
    it.end_step(tokens_seen=100)
    clock.now += 60  # of which its first 3 seconds belong to the step
    it.start_step(tokens_seen=100, spent_seconds=3)
    clock.now += 1
    assert it.end_step(tokens_seen=300) == 4
    assert it.tokens_per_second == 50


def test_the_throughput_of_short_steps_is_averaged_over_a_second(clock: Clock) -> None:
    """One is reported late and the next at once: neither is as slow or as fast as that."""
    it = Throughput()
    it.start_step(tokens_seen=0)
    for step in range(1, 41):
        clock.now += 0.2 if step % 2 else 0.05
        it.end_step(tokens_seen=100 * step)
        if step > 10:
            assert it.tokens_per_second == pytest.approx(800, rel=0.15)
    clock.now += 4
    it.end_step(tokens_seen=4100)
    assert it.tokens_per_second == 25
