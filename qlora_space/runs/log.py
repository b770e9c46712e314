"""events.jsonl: appended by one process, read from an offset by any."""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from pathlib import Path

from qlora_space.core.events import TERMINAL_KINDS, Event, Heartbeat, event_from_line, event_to_line

_MOST_WAITING = 10_000
_HEARTBEAT_SECONDS = 15.0
_RESERVE_BYTES = 2**16  # some hundred events
_SYNCED_KINDS = (*TERMINAL_KINDS, "checkpoint")


class EventLog:
    """The writing end. One per attempt; continues `seq` and mends a line cut by a kill.

    A full disk is still told about: its last bytes are kept for that in a reserve file. What it does not
    take even so waits in memory, in order, for the next append or heartbeat.
    """

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(file, len(whole))
        self._next_seq = whole.count(b"\n")
        self._file = file.open("ab", buffering=0)
        self._reserve = file.with_name(f".{file.name}.reserve")
        self._set_aside()
        self._waiting: deque[Event] = deque()
        self.last: Event | None = None  # that was appended here
        self._written_at = self._moved_at = time.monotonic()
        self._closed = threading.Event()

    def append(self, event: Event) -> Event:
        """Stamp with time and write one line. Checkpoints and ends are on disk when it returns.

        Raises OSError for a terminal event that cannot be written, or when 10,000 others wait.
        """
        self.heartbeat()
        with self._lock:
            stamped = event.model_copy(
                update={"seq": self._next_seq + len(self._waiting), "time": time.time()}
            )
            self._waiting.append(stamped)
            is_last = stamped.kind in TERMINAL_KINDS
            try:
                self._flush()
            except OSError:
                if is_last or len(self._waiting) > _MOST_WAITING:
                    self._waiting.pop()
                    raise
            if stamped.kind in _SYNCED_KINDS:
                os.fsync(self._file.fileno())
            self.last = stamped
        return stamped

    def heartbeat(self) -> None:
        """The training got somewhere, though there is nothing to tell."""
        self._moved_at = time.monotonic()

    def keep_beating(self, seconds: float = _HEARTBEAT_SECONDS) -> None:
        """From now on write a heartbeat whenever nothing else was written for `seconds`."""
        threading.Thread(target=self._beat, args=(seconds,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._file.close()
            self._reserve.unlink(missing_ok=True)

    def _beat(self, seconds: float) -> None:
        while not self._closed.wait(seconds / 5):
            now = time.monotonic()
            if now - self._written_at < seconds:
                continue
            with self._lock:
                if self._closed.is_set():
                    return
                idle = round(now - self._moved_at, 1)
                if not self._waiting:
                    beat = Heartbeat(idle_seconds=idle, seq=self._next_seq, time=time.time())
                    self._waiting.append(beat)
                try:
                    self._flush()
                except OSError:
                    continue  # the disk is full; the next look tries again

    def _flush(self) -> None:
        if not self._has_reserve:
            self._set_aside()
        while self._waiting:
            line = event_to_line(self._waiting[0]).encode() + b"\n"
            try:
                self._write_whole(line)
            except OSError:
                if not self._has_reserve:
                    raise
                self._reserve.unlink(missing_ok=True)
                self._has_reserve = False
                self._write_whole(line)
            self._waiting.popleft()
            self._next_seq += 1
            self._written_at = time.monotonic()

    def _set_aside(self) -> None:
        """Real blocks, not a hole; a disk without room for them has none for anything."""
        self._has_reserve = False
        try:
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
            self._has_reserve = True
        except OSError:
            self._reserve.unlink(missing_ok=True)

    def _write_whole(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) < len(line):
            os.ftruncate(self._file.fileno(), start)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)


def read_events(file: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Whole lines from byte `offset` on, and the offset to go on from. A half-written line waits."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return [], offset
    end = content.rfind(b"\n") + 1
    events = []
    for line in content[:end].splitlines():
        with contextlib.suppress(ValueError):  # a damaged line must not hide the run
            events.append(event_from_line(line))
    return events, offset + end
