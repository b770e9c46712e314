"""The win rate's interval covers the truth, and the number of votes that are missing is the smallest that decides."""

import math
import random

import pytest

from qlora_space.core.votes import votes_missing, win_rate


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.62, 0.9])
@pytest.mark.parametrize("n", [20, 60])
def test_the_interval_covers_the_truth_as_often_as_it_says(truth: float, n: int) -> None:
    """Exactly, by the binomial distribution: 95 % on average, no less than 92 % from 20 votes on."""
    covered = 0.0
    for wins in range(n + 1):
        found = win_rate(wins, n - wins)
        assert found is not None
        if found.low <= truth <= found.high:
            covered += math.comb(n, wins) * truth**wins * (1 - truth) ** (n - wins)
    assert 0.92 <= covered <= 0.99


def test_over_all_truths_it_covers_95_percent() -> None:
    draw, hits, trials = random.Random(0), 0, 4000
    for _ in range(trials):
        truth = draw.random()
        wins = sum(draw.random() < truth for _ in range(40))
        found = win_rate(wins, 40 - wins)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert abs(hits / trials - 0.95) <= 0.02


def test_known_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148."""
    for wins, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = win_rate(wins, n - wins)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert win_rate(0, 0) is None


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (3, 0), (0, 2), (6, 4), (45, 60), (52, 48)])
def test_so_many_more_votes_decide_it_and_one_less_does_not(wins: int, losses: int) -> None:
    missing, n = votes_missing(wins, losses), wins + losses
    assert missing is not None
    assert missing > 0
    rate, z = wins / n, 1.959964

    def is_decided(votes: int) -> bool:
        """One half is outside of the interval: the score test of it is significant."""
        return (rate - 0.5) ** 2 / (0.25 / votes) > z**2

    assert is_decided(n + missing)
    assert not is_decided(n + missing - 1)


def test_nobody_ahead_is_never_decided_and_a_clear_win_is() -> None:
    assert votes_missing(0, 0) is None
    assert votes_missing(7, 7) is None
    assert votes_missing(90, 10) == 0
    assert votes_missing(5001, 5000) is None or votes_missing(5001, 5000) > 10_000  # type: ignore[operator]
