"""How often 95 % intervals of the change per token cover the truth: python benchmarks/verdict_coverage.py

With --scores, of the change of a score between 0 and 1: right or wrong, where few or many rows change, or shared words.
Otherwise simulated held-out rows: 5 to 10,000 tokens, changes that are skewed to either side, heavy-tailed, or larger
in long rows. Several intervals are compared; core/intervals.py has the bootstrap-t, and for scores the pair of rows.
"""

import argparse
import functools
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from qlora_space.core import intervals

Array = np.ndarray
Rows = tuple[Array, Array]  # change of the loss sum, tokens: (n,)
Shape = Callable[[np.random.Generator, int], Rows]
_TRUTH_ROWS = (50, 1_000_000)  # draws, rows of each


def tokens_of(rng: np.random.Generator, n: int) -> Array:
    return np.ceil(np.clip(rng.lognormal(4.0, 0.7, n), 5, 10_000))


def normal(rng: np.random.Generator, n: int) -> Rows:
    tokens = tokens_of(rng, n)
    return tokens * rng.normal(-0.1, 0.3, n), tokens


def skewed_down(rng: np.random.Generator, n: int) -> Rows:
    """Most rows hardly change, some become much better."""
    tokens = tokens_of(rng, n)
    return -tokens * rng.gamma(1.5, 0.2, n), tokens


def skewed_up(rng: np.random.Generator, n: int) -> Rows:
    """Most rows become better, some much worse."""
    tokens = tokens_of(rng, n)
    return tokens * (rng.gamma(1.0, 0.3, n) - 0.5), tokens


def longer_changes_less(rng: np.random.Generator, n: int) -> Rows:
    tokens = tokens_of(rng, n)
    return -tokens * rng.gamma(2.0, 0.2, n) * (50 / tokens) ** 0.5, tokens


def short_answers(rng: np.random.Generator, n: int) -> Rows:
    """One to eight trained tokens a row."""
    tokens = rng.integers(1, 9, n).astype(float)
    return tokens * rng.normal(-0.4, 0.5, n) + rng.normal(0, 0.5, n), tokens


SHAPES = {
    f.__name__: f for f in (normal, skewed_down, skewed_up, longer_changes_less, short_answers)
}


def bootstrap_t(d: Array, t: Array) -> tuple[float, float]:
    found = intervals.change_per_token(d.tolist(), t.tolist())
    assert found is not None
    return found.low, found.high


def percentile(d: Array, t: Array) -> tuple[float, float]:
    means, _ = intervals._ratio(intervals._draws(len(t)), d, t)
    return tuple(np.quantile(means, [0.025, 0.975]))


def bca(d: Array, t: Array) -> tuple[float, float]:
    """Efron & Tibshirani, section 14.3."""
    means, _ = intervals._ratio(intervals._draws(len(t)), d, t)
    mean, z = d.sum() / t.sum(), NormalDist()
    share = np.clip((means < mean).mean(), 1e-4, 1 - 1e-4)
    left_out = (d.sum() - d) / (t.sum() - t)
    off = left_out.mean() - left_out
    acceleration = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    bias, ends = z.inv_cdf(share), []
    for tail in (0.025, 0.975):
        at = bias + z.inv_cdf(tail)
        ends.append(z.cdf(bias + at / (1 - acceleration * at)))
    return tuple(np.quantile(means, ends))


def student(d: Array, t: Array) -> tuple[float, float]:
    mean, error = (v[0] for v in intervals._ratio(np.ones((1, len(t))), d, t))
    z, free = NormalDist().inv_cdf(0.975), len(t) - 1
    # Student's quantile by its expansion in 1/free (Abramowitz & Stegun 26.7.5)
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return mean - quantile * error, mean + quantile * error


METHODS = {f.__name__: f for f in (percentile, bca, student, bootstrap_t)}


def right_or_wrong(gained: float, lost: float) -> Shape:
    """Shares of the rows that become right, and wrong."""

    def rows(rng: np.random.Generator, n: int) -> Rows:
        at = rng.random(n)
        return np.where(at < gained, 1.0, np.where(at < gained + lost, -1.0, 0.0)), np.ones(n)

    return rows


def shared_words(rng: np.random.Generator, n: int) -> Rows:
    return rng.beta(8, 1, n) - rng.beta(1, 3, n), np.ones(n)


def few_better_words(rng: np.random.Generator, n: int) -> Rows:
    return np.where(rng.random(n) < 0.05, rng.beta(3, 2, n), 0.0), np.ones(n)


SCORES = {
    "2 % and 2 %": right_or_wrong(0.02, 0.02),
    "5 % and none": right_or_wrong(0.05, 0.0),
    "10 % and 2 %": right_or_wrong(0.1, 0.02),
    "30 % and 10 %": right_or_wrong(0.3, 0.1),
    "97 % and none": right_or_wrong(0.97, 0.0),
    "shared words": shared_words,
    "few better words": few_better_words,
}


def with_pair(d: Array, _: Array) -> tuple[float, float]:
    found = intervals.score_change(d.tolist())
    assert found is not None
    return found.low, found.high


def bonett_price(d: Array, _: Array) -> tuple[float, float]:
    rows = np.append(d, [1.0, -1.0])
    error = 1.96 * rows.std() / math.sqrt(len(rows))
    return rows.mean() - error, rows.mean() + error


SCORE_METHODS = {f.__name__: f for f in (bootstrap_t, bonett_price, with_pair)}


@functools.cache
def true_change(shape: Shape) -> float:
    """Of so many rows that its own error is a hundredth of an interval's width at most."""
    rng, (draws, rows) = np.random.default_rng(0), _TRUTH_ROWS
    sums = np.array([[values.sum() for values in shape(rng, rows)] for _ in range(draws)])
    changes, tokens = sums.sum(axis=0)
    return float(changes / tokens)


def coverage(
    method: Callable[[Array, Array], tuple[float, float]],
    shape: Shape,
    num_rows: int,
    repeats: int,
    seed: int = 1,
) -> tuple[float, float]:
    """Share of intervals that have the truth in them, and their median width."""
    truth, rng = true_change(shape), np.random.default_rng(seed)
    found = np.array([method(*shape(rng, num_rows)) for _ in range(repeats)])
    inside = (found[:, 0] <= truth) & (truth <= found[:, 1])
    return float(inside.mean()), float(np.median(found[:, 1] - found[:, 0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--shapes", nargs="*", choices=[*SHAPES, *SCORES])
    parser.add_argument("--rows", type=int, nargs="*", default=[10, 15, 20, 30, 50, 100, 200])
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, *SCORE_METHODS])
    options = parser.parse_args()
    shapes, known = (SCORES, SCORE_METHODS) if options.scores else (SHAPES, METHODS)
    methods = [known[name] for name in options.methods or known]
    error = math.sqrt(0.95 * 0.05 / options.repeats)
    print(f"Share of {options.repeats} intervals that cover (+- {error:.1%}), and median width")
    intervals.MIN_ROWS = 2
    for name in options.shapes or shapes:
        print(f"{name:20}" + "".join(f"{m.__name__:>18}" for m in methods))
        for num_rows in options.rows:
            cells = (
                coverage(m, shapes[name], num_rows, options.repeats, options.seed) for m in methods
            )
            line = "".join(f"{share:>10.1%} {width:7.3f}" for share, width in cells)
            print(f"{num_rows:>20}{line}", flush=True)


if __name__ == "__main__":
    main()
