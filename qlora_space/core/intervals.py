"""How sure a measured change is: a 95 % interval for the mean change per token, from paired rows.

Base and trained model are measured on the same rows, so each row has one change, and rows differ in length: the mean
is the ratio of two sums, and whole rows are drawn, never tokens, since the tokens of a row are not independent.

The interval is the bootstrap-t of Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 12.5. The error
of the mean is the jackknife's (chapter 11), that of each resample the linearized one of a ratio (Cochran, Sampling
Techniques, 3rd edition, section 6.4).
benchmarks/verdict_coverage.py is why: on skewed changes, percentile, BCa and t intervals of few rows cover too seldom.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_ROWS = 20  # below it, intervals of skewed changes cover the truth too seldom
_CONFIDENCE = 0.95
_RESAMPLES = 2000
_SEED = 20_260
Array = np.ndarray


@dataclass(frozen=True)
class Interval:
    """A change per token, and where the true one is with 95 % confidence."""

    change: float
    low: float
    high: float


def change_per_token(changes: Sequence[float], tokens: Sequence[int]) -> Interval | None:
    """changes: of the loss sum of each row; tokens: those that it is summed over. The same rows give the same interval.

    None for fewer than MIN_ROWS rows: not enough to tell.
    """
    pairs = [pair for pair in zip(changes, tokens, strict=True) if pair[1] > 0]
    if len(pairs) < MIN_ROWS:
        return None
    d, t = np.array(pairs, dtype=np.float64).T
    mean, error = float(d.sum() / t.sum()), _jackknife_error(d, t)
    means, errors = _ratio(_draws(len(t)), d, t)
    has_spread = errors > 1e-12 * (abs(mean) + 1e-12)
    if not has_spread.any():
        return Interval(mean, mean, mean)
    tail = (1 - _CONFIDENCE) / 2
    studentized = (means[has_spread] - mean) / errors[has_spread]
    low, high = np.quantile(studentized, [tail, 1 - tail])
    return Interval(mean, mean - float(high) * error, mean - float(low) * error)


def score_change(changes: Sequence[float]) -> Interval | None:
    """changes: of a score between 0 and 1, row by row. None for fewer than MIN_ROWS rows.

    The percentile bootstrap (Efron & Tibshirani, chapter 13) over the rows and two more, one that became right and one
    that became wrong: the pair of Bonett & Price (J. Educ. Behav. Stat. 37, 2012), without which a score of which few
    rows change has intervals that cover too seldom (benchmarks/verdict_coverage.py --scores).
    """
    if len(changes) < MIN_ROWS:
        return None
    mean = float(np.mean(changes))
    rows = np.array([*changes, 1.0, -1.0])
    means = _draws(len(rows)) @ rows / len(rows)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def _jackknife_error(changes: Array, tokens: Array) -> float:
    """Standard error of the mean per token, from the means without one row each: it tells what a long row weighs."""
    without = (changes.sum() - changes) / (tokens.sum() - tokens)
    n = len(tokens)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def _ratio(draws: Array, changes: Array, tokens: Array) -> tuple[Array, Array]:
    """Mean per token and its standard error, for each line of `draws`: how often it has each row, (B, n)."""
    n = len(tokens)
    total = draws @ tokens
    mean = draws @ changes / total
    squares = (
        draws @ changes**2 - 2 * mean * (draws @ (changes * tokens)) + mean**2 * (draws @ tokens**2)
    )
    return mean, np.sqrt(np.maximum(squares, 0) * n / (n - 1)) / total


@functools.lru_cache(maxsize=4)
def _draws(num_rows: int) -> Array:
    rng = np.random.default_rng(_SEED)
    return rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=_RESAMPLES).astype(float)
