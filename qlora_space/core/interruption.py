"""SIGTERM and a deadline, raised as an exception at points where nothing is half done."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Why = Literal["signal", "deadline"]


class Interrupted(BaseException):
    """The process must save what is worth keeping and end.

    A BaseException, so that no `except Exception` on the way, in a library either, takes it for a failure.
    """

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why: Why = why


class Interruption:
    """Raises Interrupted in the main thread: at once, or at the next `check` while held.

    `asked` is asked at each `check`, for a thread that no signal reaches.
    """

    def __init__(self, asked: Callable[[], Why | None] = lambda: None) -> None:
        self._asked = asked
        self._why: Why | None = None
        self._holders = 0
        self.is_postponed = (
            False  # set while a step is not reported yet: `check` then raises nothing
        )

    def listen(self, deadline_at: float | None = None) -> None:
        """Handle SIGTERM, and SIGALRM at `deadline_at` (Unix time in seconds). Main thread only."""
        signal.signal(signal.SIGTERM, lambda *_: self.interrupt("signal"))
        signal.signal(signal.SIGALRM, lambda *_: self.interrupt("deadline"))
        if deadline_at is not None:
            signal.setitimer(signal.ITIMER_REAL, max(deadline_at - time.time(), 1e-3))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is raised inside the block unless `check` is called; a pending interruption is raised at its end."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
        if not self._holders:
            self.check()

    def check(self) -> None:
        """Raises Interrupted if a signal came, the deadline passed or it is asked for, unless it is postponed."""
        why = self._why or self._asked()
        if why and not self.is_postponed:
            self._why = None
            raise Interrupted(why)

    def interrupt(self, why: Why) -> None:
        """What a signal does: raise Interrupted now, or at the next `check` while held."""
        self._why = self._why or why
        if not self._holders:
            self.check()
