"""How often one visitor, and one network address, may call: a bucket of tokens each, refilled evenly."""

import time
from collections import OrderedDict
from collections.abc import Callable

from qlora_space.core.limits import Limits

_BURST_SECONDS = 20.0  # as many calls as these seconds allow may come at once
_DIRECT_PER_MINUTE = (
    60  # calls that do not queue, such as Stop: a flood of others leaves them alone
)
_MAX_KEYS = 50_000


class Bucket:
    """Buckets by key, all of one size."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_second = per_minute / 60
        self._size = max(1.0, self._per_second * _BURST_SECONDS)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # tokens, and when counted

    def seconds_to_wait(self, key: str) -> float:
        """Take one token: 0 if there was one, else the seconds until there is."""
        now = self._clock()
        left, at = self._left.pop(key, (self._size, now))
        left = min(self._size, left + (now - at) * self._per_second)
        is_enough = left >= 1
        self._left[key] = (left - is_enough, now)
        if len(self._left) > _MAX_KEYS:
            self._left.popitem(last=False)  # the one that was silent longest is full again
        return 0.0 if is_enough else (1 - left) / self._per_second


class Admission:
    """The rates of a Space."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._by_visitor = Bucket(limits.calls_per_minute, clock)
        self._by_address = Bucket(limits.calls_per_minute_of_address, clock)
        self._direct = Bucket(_DIRECT_PER_MINUTE, clock)

    def seconds_to_wait(self, visitor: str, address: str, *, is_direct: bool = False) -> float:
        """0 if this call may go on. The address counts for strangers, too, who can have any number of names."""
        if is_direct:
            return self._direct.seconds_to_wait(f"{visitor} {address}")
        wait = self._by_visitor.seconds_to_wait(visitor)
        return wait or self._by_address.seconds_to_wait(address)
