"""The token of a run's owner, on its way from the server to the run's worker: lines through a pipe.

The first line is written when the worker starts, a further one when the owner has signed in anew. Environment and
arguments of a process can be read in /proc, also by a chat template that escapes its sandbox; a pipe cannot.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO


class TokenWriter:
    """The server's end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        os.set_blocking(pipe.fileno(), False)  # a frozen worker reads nothing
        self._pipe, self._sent = pipe, ""
        self._writing = threading.Lock()

    def send(self, token: str) -> None:
        """Unless it is the one that was sent last. One that has ended its life gets nothing."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        with self._writing:
            if digest == self._sent or self._pipe.closed:
                return
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._pipe.fileno(), f"{token}\n".encode())
                self._sent = digest

    def close(self) -> None:
        with self._writing:
            self._pipe.close()


class OwnerToken:
    """The worker's end: the newest token."""

    def __init__(self, newest: str | None = None) -> None:
        self.newest = newest
        self._telling = threading.Lock()  # the older of two is never the last
        self._renewed: Callable[[str], object] = lambda _: None

    @classmethod
    def from_stdin(cls) -> "OwnerToken":
        """Waits for the first line. No child of this process can read what comes after it: stdin is empty then."""
        pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        lines = _lines(pipe)
        token = cls(next(lines, None))
        threading.Thread(target=token._follow, args=(lines,), daemon=True).start()
        return token

    def tell(self, renewed: Callable[[str], object]) -> None:
        """Call it, in another thread, with each token that comes; and at once with the one that is there."""
        with self._telling:
            self._renewed = renewed
            if self.newest:
                renewed(self.newest)

    def _follow(self, lines: Iterator[str]) -> None:
        for line in lines:
            with self._telling:
                self.newest = line
                self._renewed(line)


def _lines(pipe: int) -> Iterator[str]:
    """Not through a file object, whose lock a thread that waits would hold when the interpreter ends."""
    rest = b""
    while part := os.read(pipe, 4096):
        *lines, rest = (rest + part).split(b"\n")
        yield from filter(None, (line.decode().strip() for line in lines))
