"""How long a step took, also where the next one has begun before it is told."""

import math
import time


class Pace:
    def __init__(self) -> None:
        self.seconds = self.tokens_per_second = math.nan  # of the newest step
        self._last = (time.monotonic(), 0)

    def begin(self, tokens_seen: int, spent_seconds: float = 0.0) -> None:
        """A step begins now, or goes on, of which so many seconds are done."""
        self._last = (time.monotonic() - spent_seconds, tokens_seen)

    def end(self, tokens_seen: int) -> float:
        """Its seconds. The next one begins."""
        now, (then, tokens_then) = time.monotonic(), self._last
        self.seconds = max(now - then, 1e-9)
        self.tokens_per_second = (tokens_seen - tokens_then) / self.seconds
        self._last = (now, tokens_seen)
        return self.seconds
