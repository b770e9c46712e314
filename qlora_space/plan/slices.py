"""A run in slices of lent GPU time: how long each is, how many there are, and what they take of a daily quota.

ZeroGPU lends a GPU for as many seconds as were asked for, ends what takes longer, and takes the time from the quota of
the visitor who asked. On some cards a second counts more than once (`factor`). Pure arithmetic.
"""

import math
from dataclasses import dataclass

GRANT_SHARE = (
    0.85  # of the seconds that were asked for is used; the rest is what the platform itself takes
)
LEAST_SECONDS = 20  # so little is worth asking for
FIRST_SECONDS = 60  # usual, if starting and saving are short
MOST_SECONDS = 300  # what is lost at most; and shorter ones are served first
_LOAD_SECONDS, _READ_BYTES_PER_SECOND = 20, 1e9  # estimates, with room
_PROMPTS_AT_ONCE, _TOKEN_SECONDS = 32, 0.06
_MOST_OVERHEAD = 0.25  # share of a slice's time that starting and saving may take


@dataclass(frozen=True)
class SliceCosts:
    """Seconds of the GPU: from its grant to the first step, for the checkpoint at the end, and for a step."""

    start: float
    save: float
    step: float

    @property
    def overhead(self) -> float:
        return self.start + self.save

    def train_seconds(self, asked_seconds: float) -> float:
        """Of a slice that asked for so many: what is left for steps."""
        return max(0.0, GRANT_SHARE * asked_seconds - self.overhead)


@dataclass(frozen=True)
class Quota:
    """Seconds that are left to a visitor today, and of every day. `factor`: how often a second counts."""

    left_seconds: float
    day_seconds: float
    factor: float = 1.0

    def slices_today(self, asked_seconds: float) -> int:
        return int(self.left_seconds // (asked_seconds * self.factor))

    def slices_a_day(self, asked_seconds: float) -> int:
        return int(self.day_seconds // (asked_seconds * self.factor))


def slice_seconds(
    to_do_seconds: float, costs: SliceCosts, quota: Quota | None = None, most: int = MOST_SECONDS
) -> int:
    """What the next slice asks for; 0 if none that may be asked for has time for a step.

    `most`: what the platform or a person allows for one.
    """
    for_two_steps = (costs.overhead + 2 * costs.step) / GRANT_SHARE
    wanted = max(FIRST_SECONDS, costs.overhead / _MOST_OVERHEAD, for_two_steps)
    needed = (costs.overhead + max(to_do_seconds, costs.step)) / GRANT_SHARE
    allowed = min(most, quota.left_seconds / quota.factor) if quota else most
    asked = int(min(max(LEAST_SECONDS, math.ceil(min(wanted, needed))), allowed))
    is_enough = asked >= LEAST_SECONDS and costs.train_seconds(asked) >= costs.step
    return asked if is_enough else 0


def compare_seconds(parameters: int, num_prompts: int, max_new_tokens: int) -> int:
    """To ask for: a base of so many weights is read and quantized, then batches of prompts are answered."""
    load = _LOAD_SECONDS + 2 * parameters / _READ_BYTES_PER_SECOND
    batches = math.ceil(num_prompts / _PROMPTS_AT_ONCE)
    write = batches * max_new_tokens * _TOKEN_SECONDS
    return min(MOST_SECONDS, math.ceil((load + write) / GRANT_SHARE))


@dataclass(frozen=True)
class Forecast:
    """What is still to do: slices, minutes of the quota at most, and days, today among them. None: not known, as
    where nobody says what the quota is; 0 slices: it cannot go on in slices."""

    slices: int
    quota_minutes: float
    days: int | None


def forecast(
    to_do_seconds: float, costs: SliceCosts, asked_seconds: int, quota: Quota | None = None
) -> Forecast:
    """Slices that ask for `asked_seconds` each, and take all of them: no day is promised more than its quota."""
    a_slice = costs.train_seconds(asked_seconds)
    if a_slice <= 0:
        return Forecast(0, 0.0, None)
    slices = max(1, math.ceil(to_do_seconds / a_slice))
    factor = quota.factor if quota else 1.0
    minutes = slices * asked_seconds * factor / 60
    return Forecast(slices, minutes, _days(slices, asked_seconds, quota) if quota else None)


def _days(slices: int, asked_seconds: int, quota: Quota) -> int | None:
    """None if a whole day's quota is shorter than a slice."""
    later = slices - quota.slices_today(asked_seconds)
    if later <= 0:
        return 1
    a_day = quota.slices_a_day(asked_seconds)
    return 1 + math.ceil(later / a_day) if a_day else None
