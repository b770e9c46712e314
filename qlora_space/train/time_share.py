"""The part of a run's time that evaluation takes, as measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qlora_space.plan.eval_cost import allowed_seconds


class TimeShare:
    """Evaluation may take `share` of all the time since this was made, and the first seconds in any case."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._started_at = clock()
        self._done_seconds = 0.0
        self._since: float | None = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """What happens within is evaluation."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._done_seconds, self._since = self.spent_seconds, None

    @property
    def spent_seconds(self) -> float:
        """Up to this moment."""
        running = 0.0 if self._since is None else self._clock() - self._since
        return self._done_seconds + running

    def left_seconds(self, train_seconds: float = 0.0) -> float:
        """How long evaluation may still go on; below 0 where it took more than its share.

        train_seconds: of all attempts at the run, if this one began in its middle.
        """
        others = max(self._clock() - self._started_at - self.spent_seconds, train_seconds)
        return allowed_seconds(self._share, others) - self.spent_seconds
