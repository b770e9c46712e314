import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.data.order import row_order, rows_of_step

SEEDS = st.integers(0, 2**63)
ROWS = st.integers(1, 300)


@given(ROWS, SEEDS, st.integers(0, 10**6))
def test_an_epoch_has_every_row_once(num_rows: int, seed: int, epoch: int) -> None:
    order = row_order(num_rows, seed, epoch)
    assert sorted(order) == list(range(num_rows))
    assert order.dtype == np.int64


@given(ROWS, SEEDS, st.integers(1, 20), st.integers(0, 10), st.integers(0, 10))
def test_steps_give_the_epochs_in_a_row_from_any_step_on(
    num_rows: int, seed: int, rows_per_step: int, start: int, steps: int
) -> None:
    whole = np.concatenate(
        [row_order(num_rows, seed, epoch) for epoch in range(1 + 20 * 20 // num_rows)]
    )
    resumed = [rows_of_step(start + i, rows_per_step, num_rows, seed) for i in range(steps)]
    expected = whole[start * rows_per_step : (start + steps) * rows_per_step]
    assert np.array_equal(np.concatenate([expected[:0], *resumed]), expected)


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(row_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_row_is_as_likely_at_every_position() -> None:
    orders = np.array([row_order(8, 1, epoch) for epoch in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in orders.T])
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert row_order(8, 42, 3).tolist() == [1, 6, 3, 4, 5, 2, 0, 7]


def test_a_step_late_in_a_long_training_costs_no_more_than_the_first() -> None:
    assert len(rows_of_step(10**12, 8, 1000, 7)) == 8


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        rows_of_step(0, 8, 0, 1)
