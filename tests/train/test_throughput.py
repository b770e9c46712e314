"""Seconds and tokens per second from step to step, on a clock that is set by hand."""

import pytest

from qlora_space.train import throughput as pace
from qlora_space.train.throughput import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def test_steps_follow_each_other_and_what_is_done_between_them_is_left_out(clock: Clock) -> None:
    it = Pace()
    it.begin(tokens_seen=50)
    clock.now += 2
    assert it.end(tokens_seen=150) == 2
    clock.now += 4
    assert it.end(tokens_seen=250) == 4
    assert it.tokens_per_second == 25
    clock.now += 60  # a look, with no step under way
    it.begin(tokens_seen=250)
    clock.now += 1
    assert it.end(tokens_seen=350) == 1


def test_of_a_step_that_was_under_way_during_a_look_the_look_is_left_out(clock: Clock) -> None:
    it = Pace()
    it.begin(tokens_seen=0)
    clock.now += 2
    it.end(tokens_seen=100)
    clock.now += 60  # of which its first 3 seconds belong to the step
    it.begin(tokens_seen=100, spent_seconds=3)
    clock.now += 1
    assert it.end(tokens_seen=300) == 4
    assert it.tokens_per_second == 50


def test_the_speed_of_short_steps_is_that_of_a_second_of_them(clock: Clock) -> None:
    """One is told late and the next at once: neither is as slow or as fast as that."""
    it = Pace()
    it.begin(tokens_seen=0)
    for step in range(1, 41):
        clock.now += 0.2 if step % 2 else 0.05
        it.end(tokens_seen=100 * step)
        if step > 10:
            assert it.tokens_per_second == pytest.approx(800, rel=0.15)
    clock.now += 4
    it.end(tokens_seen=4100)
    assert it.tokens_per_second == 25
