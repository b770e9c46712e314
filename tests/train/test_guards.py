"""Guards trip on what broke and leave alone what is only noisy."""

import math
import random

import pytest

from qlora_space.train.guards import GuardState, Unsound, check


def run_through(pairs: list[tuple[float, float]]) -> tuple[GuardState, str]:
    """The last sound state, and what was wrong after it ('' if nothing)."""
    state = GuardState()
    for loss, norm in pairs:
        try:
            state = check(state, loss, norm)
        except Unsound as unsound:
            return state, str(unsound)
    return state, ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_norm_that_is_not_finite_is_named_with_its_value(bad: float) -> None:
    assert run_through([(bad, 1.0)])[1] == f"the loss is {bad}"
    assert run_through([(1.0, bad)])[1] == f"the gradient norm is {bad}"


def test_a_norm_that_overflowed_in_a_skipped_step_is_not_a_fault() -> None:
    assert check(GuardState(), 1.0, math.inf, step_was_skipped=True) == GuardState()


def test_a_noisy_run_that_learns_never_trips() -> None:
    rng = random.Random(0)
    steps = [
        (8 * math.exp(-i / 40) * rng.uniform(0.5, 2) + 0.01, rng.lognormvariate(0, 1.5))
        for i in range(600)
    ]
    assert run_through(steps)[1] == ""


def test_one_spike_of_the_loss_or_of_the_norm_does_not_trip() -> None:
    calm = [(1.0, 1.0)] * 60
    assert run_through([*calm, (9.0, 1.0), *calm])[1] == ""
    assert run_through([*calm, (1.0, 1e6), (1.0, 1e6), *calm])[1] == ""


def test_a_loss_that_stays_up_trips() -> None:
    assert "loss went up" in run_through([(1.0, 1.0)] * 60 + [(9.0, 1.0)] * 20)[1]


def test_norms_that_stay_up_trip_at_the_third() -> None:
    assert "gradient norm is 1e+06" in run_through([(1.0, 1.0)] * 60 + [(1.0, 1e6)] * 3)[1]


def test_the_state_comes_back_from_json_as_it_was() -> None:
    state, _ = run_through([(1.1, 0.3), (0.7, 0.1)])
    assert GuardState.model_validate_json(state.model_dump_json()) == state
