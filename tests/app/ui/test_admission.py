"""Rates of one visitor, with a clock of the test's own."""

from qlora_space.app.ui.admission import Admission, Bucket
from qlora_space.core.limits import Limits


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_let_through_and_then_as_much_as_the_rate_allows() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert [bucket.seconds_to_wait("a") for _ in range(20)] == [0.0] * 20
    assert 0.9 < bucket.seconds_to_wait("a") <= 1.0
    assert bucket.seconds_to_wait("b") == 0.0, "another visitor has a bucket of their own"
    clock.now += 3.0
    assert [bool(bucket.seconds_to_wait("a")) for _ in range(4)] == [False, False, False, True]


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    for _ in range(500):
        bucket.seconds_to_wait("a")
    clock.now += 1.0
    assert bucket.seconds_to_wait("a") == 0.0


def test_strangers_of_one_address_share_its_rate_whatever_they_call_themselves() -> None:
    admission = Admission(Limits(calls_per_minute=60, calls_per_minute_of_address=120), Clock())
    waits = [admission.seconds_to_wait(f"anonymous {i}", "10.0.0.1") for i in range(60)]
    assert waits.count(0.0) == 40
    assert admission.seconds_to_wait("anonymous x", "10.0.0.2") == 0.0


def test_a_flood_of_queued_calls_leaves_stop_alone() -> None:
    admission = Admission(Limits(), Clock())
    for _ in range(500):
        admission.seconds_to_wait("a", "10.0.0.1")
    assert admission.seconds_to_wait("a", "10.0.0.1") > 0
    assert admission.seconds_to_wait("a", "10.0.0.1", is_direct=True) == 0.0
