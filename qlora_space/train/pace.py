"""How long a step took, also where the next one has begun before it is told."""

import math
import time


class Pace:
    def __init__(self) -> None:
        self.tokens_per_second = math.nan  # of the newest step
        self._last = (time.monotonic(), 0)

    def begin(self, tokens_seen: int) -> None:
        """A step begins now."""
        self._last = (time.monotonic(), tokens_seen)

    def lose(self, tokens_seen: int) -> None:
        """The step that is under way has no time of its own: something else was done meanwhile."""
        self._last = (math.nan, tokens_seen)

    def end(self, tokens_seen: int) -> float:
        """Its seconds; where they are not known, at the pace so far. The next one begins."""
        now, (then, tokens_then) = time.monotonic(), self._last
        tokens = tokens_seen - tokens_then
        seconds = max(now - then, 1e-9)
        if math.isnan(then):
            seconds = tokens / self.tokens_per_second
        self.tokens_per_second, self._last = tokens / seconds, (now, tokens_seen)
        return seconds
