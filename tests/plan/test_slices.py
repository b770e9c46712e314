"""Slices fit into what is left, have time for what they are asked for, and no day is promised more than its quota."""

from hypothesis import assume, given
from hypothesis import strategies as st

from qlora_space.plan.slices import (
    FIRST_SECONDS,
    LEAST_SECONDS,
    MOST_SECONDS,
    Quota,
    SliceCosts,
    forecast,
    slice_seconds,
)

seconds = st.floats(0, 1e5)
costs_of = st.builds(
    SliceCosts, start=st.floats(0, 200), save=st.floats(0, 60), step=st.floats(0.01, 200)
)
quotas = st.builds(
    Quota,
    left_seconds=st.floats(0, 4000),
    day_seconds=st.floats(60, 4000),
    factor=st.sampled_from([1.0, 1.5, 2.0]),
)
PRACTICAL = SliceCosts(start=8, save=1, step=2)


@given(seconds, costs_of, st.none() | quotas, st.integers(1, 600))
def test_a_slice_has_time_for_a_step_and_is_within_what_may_be_asked_for(
    to_do: float, costs: SliceCosts, quota: Quota | None, most: int
) -> None:
    asked = slice_seconds(to_do, costs, quota, most)
    if not asked:
        return
    assert LEAST_SECONDS <= asked <= most
    assert costs.train_seconds(asked) >= costs.step
    if quota:
        assert asked * quota.factor <= quota.left_seconds


@given(seconds, costs_of, quotas)
def test_no_day_is_promised_more_than_its_quota(
    to_do: float, costs: SliceCosts, quota: Quota
) -> None:
    asked = slice_seconds(to_do, costs, quota)
    assume(asked)
    found = forecast(to_do, costs, asked, quota)
    a_slice = asked * quota.factor
    assert quota.slices_today(asked) * a_slice <= quota.left_seconds
    assert quota.slices_a_day(asked) * a_slice <= quota.day_seconds
    assert found.slices * costs.train_seconds(asked) >= to_do
    if found.days is not None:
        can_do = quota.slices_today(asked) + (found.days - 1) * quota.slices_a_day(asked)
        assert can_do >= found.slices
        if found.days > 1:
            assert can_do - quota.slices_a_day(asked) < found.slices, "nor a day too many"


@given(seconds, costs_of)
def test_slices_one_after_the_other_are_as_many_as_was_said(
    to_do: float, costs: SliceCosts
) -> None:
    asked = slice_seconds(to_do, costs)
    assume(asked and to_do / costs.train_seconds(asked) < 1000)
    left, done = to_do, 0
    while left > 1e-6 * to_do:
        left, done = left - costs.train_seconds(asked), done + 1
    assert max(1, done) in (
        forecast(to_do, costs, asked).slices,
        forecast(to_do, costs, asked).slices - 1,
    )


def test_a_slice_is_no_longer_than_what_is_left_to_do() -> None:
    assert slice_seconds(1000, PRACTICAL) == FIRST_SECONDS
    assert LEAST_SECONDS <= slice_seconds(10, PRACTICAL) < FIRST_SECONDS


def test_a_slow_start_makes_longer_slices() -> None:
    slow = SliceCosts(start=30, save=5, step=2)
    assert slice_seconds(1000, slow) == 140
    assert slice_seconds(1000, SliceCosts(start=100, save=5, step=2)) == MOST_SECONDS


def test_a_free_account_on_a_card_that_counts_one_and_a_half() -> None:
    """Five minutes a day: three slices of a minute, so seven slices take three days."""
    free = Quota(left_seconds=300, day_seconds=300, factor=1.5)
    found = forecast(7 * PRACTICAL.train_seconds(60), PRACTICAL, 60, free)
    assert (found.slices, found.days, found.quota_minutes) == (7, 3, 10.5)


def test_what_cannot_go_on_in_slices_is_said() -> None:
    assert slice_seconds(1000, SliceCosts(start=20, save=5, step=400)) == 0
    assert slice_seconds(1000, PRACTICAL, Quota(left_seconds=25, day_seconds=300, factor=1.5)) == 0
    assert forecast(1000, SliceCosts(start=60, save=5, step=1), 60).slices == 0
    tiny = Quota(left_seconds=0, day_seconds=30)
    assert forecast(1000, PRACTICAL, 60, tiny).days is None
