"""Intervals of a change per token: they cover the truth, and say nothing on too few rows."""

import runpy
from pathlib import Path

import pytest

from qlora_space.core.intervals import MIN_ROWS, change_per_token, score_change

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "verdict_coverage.py"))


@pytest.mark.parametrize("num_rows", [MIN_ROWS, 100])
def test_intervals_of_skewed_changes_in_rows_of_any_length_cover_the_truth(num_rows: int) -> None:
    """A fast part of benchmarks/verdict_coverage.py, with the noise of 300 repeats on its 95 +- 2 %."""
    share, _ = BENCHMARK["coverage"](
        BENCHMARK["bootstrap_t"], BENCHMARK["skewed_up"], num_rows, repeats=300
    )
    assert 0.905 <= share <= 0.99


def test_too_few_rows_have_no_interval() -> None:
    assert change_per_token([-1.0] * (MIN_ROWS - 1), [10] * (MIN_ROWS - 1)) is None
    empty_rows = [0] * 50
    assert change_per_token([0.0] * 50, empty_rows) is None


def test_the_change_is_per_token_and_the_same_rows_give_the_same_interval() -> None:
    changes, tokens = [-1.0 * i for i in range(1, 31)], [10 + i for i in range(30)]
    found = change_per_token(changes, tokens)
    assert found is not None
    assert found.change == pytest.approx(sum(changes) / sum(tokens))
    assert found.low < found.change < found.high < 0
    assert found == change_per_token(changes, tokens)


def test_an_adapter_that_changes_nothing_has_no_width() -> None:
    found = change_per_token([0.0] * 30, [10] * 30)
    assert found is not None
    assert (found.low, found.change, found.high) == (0, 0, 0)


@pytest.mark.parametrize("num_rows", [MIN_ROWS, 200])
@pytest.mark.parametrize(
    "shape", ["5 % and none", "30 % and 10 %", "97 % and none", "shared words"]
)
def test_intervals_of_scores_cover_the_truth_where_few_or_nearly_all_rows_change(
    shape: str, num_rows: int
) -> None:
    """A fast part of benchmarks/verdict_coverage.py --scores; a plain bootstrap-t covers 43 to 95 % of these."""
    rows = BENCHMARK["SCORES"][shape]
    share, _ = BENCHMARK["coverage"](BENCHMARK["with_pair"], rows, num_rows, repeats=300)
    assert share >= 0.915


def test_a_score_that_does_not_change_has_an_interval_around_nothing() -> None:
    none, all_right = score_change([0.0] * 40), score_change([1.0] * 40)
    assert none
    assert all_right
    assert none.low < none.change == 0 < none.high
    assert 0.8 < all_right.low < all_right.high == 1
    assert score_change([1.0] * (MIN_ROWS - 1)) is None
