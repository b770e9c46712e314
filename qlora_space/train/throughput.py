"""How long a step took, also where the next one has begun before it is told."""

import math
import time
from collections import deque

# A step that is told late is told when the next one has been queued, which may take a moment (a graph that is
# captured): over less time, what one step lacks the other has too much.
_SPAN_SECONDS = 1.0


class Pace:
    def __init__(self) -> None:
        self.seconds = math.nan  # of the newest step
        self._last = (time.monotonic(), 0)
        self._recent: deque[tuple[float, int]] = deque()  # seconds and tokens of steps

    @property
    def tokens_per_second(self) -> float:
        """Of the newest steps that together took a second; not a number before the first."""
        if not self._recent:
            return math.nan
        seconds, tokens = (sum(column) for column in zip(*self._recent, strict=True))
        return tokens / seconds

    def begin(self, tokens_seen: int, spent_seconds: float = 0.0) -> None:
        """A step begins now, or goes on, of which so many seconds are done."""
        self._last = (time.monotonic() - spent_seconds, tokens_seen)

    def end(self, tokens_seen: int) -> float:
        """Its seconds. The next one begins."""
        now, (then, tokens_then) = time.monotonic(), self._last
        self.seconds = max(now - then, 1e-9)
        self._last = (now, tokens_seen)
        self._recent.append((self.seconds, tokens_seen - tokens_then))
        while sum(seconds for seconds, _ in self._recent) - self._recent[0][0] >= _SPAN_SECONDS:
            self._recent.popleft()
        return self.seconds
