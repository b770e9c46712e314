"""A few inspections at a time, each in a child of its own: what strangers wrote is read there and nowhere else."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qlora_space.core.errors import BackendError, QloraSpaceError, Superseded
from qlora_space.places.environment import child_environment
from qlora_space.places.service import error_of_child, started_by_a_thread

_MAX_REPLY_BYTES = 64 * 2**20
# One thread, so that a fork is whole; and no arena of a gigabyte, which would count as memory used.
_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
}
_ENDED = {
    "time": "takes more computing than any real one",
    "memory": "takes more memory than any real one",
    "crash": "made the process that reads it fail",
}


@dataclass(frozen=True)
class InspectorLimits:
    """Of one visitor, so many are answered and wait at once; one waits for a child so long, and for its answer.

    The defaults are for strangers: whoever takes all that he may leaves children for others.
    """

    children: int = 3
    per_visitor: int = 1
    waiting_per_visitor: int = 1
    wait_seconds: float = 10.0
    answer_seconds: float = 60.0


# The pages of one person: they wait for each other.
OF_ONE_PERSON = InspectorLimits(per_visitor=2, waiting_per_visitor=64, wait_seconds=120.0)


@dataclass(eq=False)
class _Turn:
    """One request. `connection` is there while it is answered."""

    visitor: str
    page: str
    connection: socket.socket | None = None
    is_replaced: bool = False

    def end(self) -> None:
        self.is_replaced = True
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class _Line:
    """Who is answered and who waits."""

    limits: InspectorLimits
    running: list[_Turn] = field(default_factory=list)
    waiting: list[_Turn] = field(default_factory=list)

    def of(self, visitor: str, turns: list[_Turn]) -> int:
        return sum(turn.visitor == visitor for turn in turns)

    def has_place_for(self, turn: _Turn) -> bool:
        """In the order of arrival, but nobody waits for somebody who has his share already."""
        if len(self.running) >= self.limits.children or not self._has_share_for(turn):
            return False
        before = self.waiting[: self.waiting.index(turn)]
        return not any(self._has_share_for(other) for other in before)

    def _has_share_for(self, turn: _Turn) -> bool:
        return self.of(turn.visitor, self.running) < self.limits.per_visitor


class InspectorPool:
    """Started by the first request or `warm_up`. Safe to share between threads."""

    def __init__(self, log_folder: Path, limits: InspectorLimits = InspectorLimits()) -> None:
        self._limits = limits
        self._zygote = _ZygoteProcess(log_folder / "inspect.log")
        self._line = _Line(limits)
        self._changed = threading.Condition()

    def warm_up(self) -> None:
        """Start the process now, so that the first request does not wait for its imports."""
        self._zygote.start()

    def ask(
        self, message: dict[str, Any], visitor: str = "", page: str = ""
    ) -> list[dict[str, Any]]:
        """The replies to one request. `visitor` has a fair share; a newer request of the same `page` (not "") takes
        the place of an older one.

        Raises the child's own QloraSpaceError, or BackendError if there is no place, no answer in time, or the child
        was ended.
        """
        with self._turn(visitor, page) as turn:
            return list(self._replies(turn, message))

    def close(self) -> None:
        """Kill all children."""
        self._zygote.close()

    @contextlib.contextmanager
    def _turn(self, visitor: str, page: str) -> Iterator[_Turn]:
        turn = _Turn(visitor, page)
        with self._changed:
            self._replace_older(turn)
            if self._line.of(visitor, self._line.waiting) >= self._limits.waiting_per_visitor:
                raise BackendError("You have asked for several inspections already.", _WAIT)
            self._line.waiting.append(turn)
            try:
                self._wait_for_place(turn)
                self._line.running.append(turn)
            finally:
                self._line.waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield turn
        finally:
            with self._changed:
                self._line.running.remove(turn)
                self._changed.notify_all()

    def _replace_older(self, turn: _Turn) -> None:
        for other in (*self._line.waiting, *self._line.running):
            if turn.page and (other.visitor, other.page) == (turn.visitor, turn.page):
                other.end()
        self._changed.notify_all()

    def _wait_for_place(self, turn: _Turn) -> None:
        """Raises BackendError if there is none in time, or a newer request has replaced this one."""

        def is_over() -> bool:
            return turn.is_replaced or self._line.has_place_for(turn)

        if not self._changed.wait_for(is_over, self._limits.wait_seconds):
            raise BackendError("All inspectors are busy now.", _WAIT)
        if turn.is_replaced:
            raise _replaced()

    def _replies(self, turn: _Turn, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + self._limits.answer_seconds
        with self._zygote.connect() as connection:
            turn.connection = connection
            failure: QloraSpaceError | None = None
            for reply in self._lines(connection, message, deadline):
                if turn.is_replaced:
                    raise _replaced()
                if "end" in reply:
                    break
                failure = failure or self._failure(reply, message)
                if failure is None:
                    yield reply
            else:
                raise _replaced() if turn.is_replaced else failure or _ended("crash", message)
            if failure is not None:
                raise failure

    def _lines(
        self, connection: socket.socket, message: dict[str, Any], deadline: float
    ) -> Iterator[dict[str, Any]]:
        """Until the child closes the connection. Raises BackendError over the deadline."""
        pending = bytearray()
        try:
            connection.settimeout(self._limits.answer_seconds)
            connection.sendall(json.dumps(message).encode() + b"\n")
            while len(pending) <= _MAX_REPLY_BYTES:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                piece = connection.recv(2**20)
                if not piece:
                    return
                pending += piece
                *lines, rest = pending.split(b"\n")
                pending = bytearray(rest)
                yield from map(json.loads, lines)
        except TimeoutError:
            raise BackendError(
                f"There was no answer within {self._limits.answer_seconds:.0f} seconds.",
                "Try again with less; if it happens again, look at the server's log.",
            ) from None
        except OSError:
            return

    def _failure(self, reply: dict[str, Any], message: dict[str, Any]) -> QloraSpaceError | None:
        if "ended" in reply:
            return _ended(reply["ended"], message)
        return error_of_child(reply, "inspect", self._zygote.log_file.name)


def _ended(why: str, message: dict[str, Any]) -> BackendError:
    asked = "adapter" if "adapter" in message else "dataset or base"
    return BackendError(f"This {asked} {_ENDED[why]}.", f"Choose another {asked}.")


_WAIT = "Try again in a few seconds."


def _replaced() -> Superseded:
    return Superseded("A newer inspection has taken this one's place.", "Wait for its result.")


class _ZygoteProcess:
    """The process of zygote.py, started again if it died."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Raises BackendError if it cannot be started."""
        with self._lock:
            self._running()

    def connect(self) -> socket.socket:
        """A socket to a new child. Raises BackendError."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                socket.send_fds(self._running(), [b"+"], [theirs.fileno()])
            except OSError:  # it died a moment ago
                self._end()
                socket.send_fds(self._running(), [b"+"], [theirs.fileno()])
        return ours

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> socket.socket:
        if self._control is None or self._child is None or self._child.poll() is not None:
            self._end()
            self._control, theirs = socket.socketpair()
            with theirs:
                start = partial(_start, self.log_file, theirs)
                self._child = started_by_a_thread("inspect", self.log_file, start)
        return self._control

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)  # it kills its children first, else the kernel does
            self._child.kill()
            self._child.wait()
            self._child = None


def _start(log_file: Path, control: socket.socket) -> "subprocess.Popen[bytes]":
    log_file.parent.mkdir(parents=True, exist_ok=True)
    number = control.fileno()
    with log_file.open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "qlora_space.places.worker", "inspect", str(number)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**child_environment(), **_ONE_THREAD},
            pass_fds=(number,),
            start_new_session=True,
        )
