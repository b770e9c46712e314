"""How sure a win rate is, and how many votes are still missing.

The interval is Wilson's score interval (Probable Inference, JASA 22, 1927), which also holds near 0 and 1 and for few
votes. Ties say that neither is better: they are counted and shown, and left out of the rate.
"""

import math
from dataclasses import dataclass

_Z = 1.959964  # of 95 % confidence
_MOST_MISSING = 100_000


@dataclass(frozen=True)
class WinRate:
    """Share of decided votes that were won, and where the true share is with 95 % confidence."""

    rate: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether one half lies outside."""
        return self.low > 0.5 or self.high < 0.5


def win_rate(wins: int, losses: int) -> WinRate | None:
    """None without a decided vote."""
    n = wins + losses
    return _interval(wins / n, n) if n else None


def votes_missing(wins: int, losses: int) -> int | None:
    """How many more decided votes at the same rate until the interval leaves one half out; 0 if it does.

    None if nobody is ahead: no number of such votes decides it.
    """
    n = wins + losses
    if not n or wins == losses:
        return None
    rate, low, high = wins / n, 0, 1
    while not _interval(rate, n + high).is_decided:
        if high > _MOST_MISSING:
            return None
        low, high = high, 2 * high
    if _interval(rate, n).is_decided:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = _interval(rate, n + middle).is_decided
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _interval(rate: float, n: int) -> WinRate:
    square = _Z**2 / n
    middle = (rate + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(rate * (1 - rate) / n + square / (4 * n))
    return WinRate(rate, max(0.0, middle - half), min(1.0, middle + half))
