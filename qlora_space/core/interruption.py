"""SIGTERM and a deadline, turned into an exception at moments when nothing is half done."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Why = Literal["signal", "deadline"]


class Interrupted(BaseException):
    """The process must end now; everything worth keeping is to be saved first.

    No `except Exception` on the way, a library's neither, may take it for a failure.
    """

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why: Why = why


class Interruption:
    """Raises Interrupted in the main thread at once, or, while held, when `check` is next called."""

    def __init__(self) -> None:
        self._why: Why | None = None
        self._holders = 0
        # What is half done will be whole in a moment: `check` waits for it.
        self.is_postponed = False

    def listen(self, deadline_at: float | None = None) -> None:
        """Take SIGTERM, and SIGALRM at `deadline_at` (Unix time in seconds). Main thread only."""
        signal.signal(signal.SIGTERM, lambda *_: self._hear("signal"))
        signal.signal(signal.SIGALRM, lambda *_: self._hear("deadline"))
        if deadline_at is not None:
            signal.setitimer(signal.ITIMER_REAL, max(deadline_at - time.time(), 1e-3))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is raised inside unless `check` is called; what came meanwhile is raised at the end."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        if not self._holders:
            self.check()

    def check(self) -> None:
        """Raises Interrupted if a signal came or the deadline passed, unless it is postponed."""
        if self._why and not self.is_postponed:
            why, self._why = self._why, None
            raise Interrupted(why)

    def _hear(self, why: Why) -> None:
        self._why = self._why or why
        if not self._holders:
            self.check()
