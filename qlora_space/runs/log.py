"""events.jsonl: appended to by one process, read from an offset by any."""

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
    """Appends events. One per attempt; it continues `seq` and removes a line that a kill cut off.

    A reserve file keeps some bytes of the disk, so that even a full one takes the event that says so. What it does not
    take waits in memory, in order, for the next append or heartbeat.
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
        self._make_reserve()
        self._waiting: deque[Event] = deque()
        self.last: Event | None = None  # that this log appended
        self._written_at = self._progress_at = time.monotonic()
        self._closed = threading.Event()

    @property
    def next_seq(self) -> int:
        """Of the next event."""
        return self._next_seq + len(self._waiting)

    def take(self, event: Event) -> None:
        """Write an event of another machine as it is: with its time and its `seq`, which must be the next one."""
        with self._lock:
            if event.seq != self.next_seq:
                raise ValueError(f"seq is {event.seq}, and the next one is {self.next_seq}")
            self._waiting.append(event)
            self._flush()
            if event.kind in _SYNCED_KINDS:
                os.fsync(self._file.fileno())
            self.last = event

    def append(self, event: Event) -> Event:
        """Stamp with `seq` and time, and write one line. Checkpoints and terminal events are synced when it returns.

        Raises OSError for a terminal event that cannot be written, or when 10,000 others wait.
        """
        self.heartbeat()
        with self._lock:
            stamped = event.model_copy(
                update={"seq": self._next_seq + len(self._waiting), "time": time.time()}
            )
            self._waiting.append(stamped)
            is_terminal = stamped.kind in TERMINAL_KINDS
            try:
                self._flush()
            except OSError:
                if is_terminal or len(self._waiting) > _MOST_WAITING:
                    self._waiting.pop()
                    raise
            if stamped.kind in _SYNCED_KINDS:
                os.fsync(self._file.fileno())
            self.last = stamped
        return stamped

    def heartbeat(self) -> None:
        """Note that training made progress, though there is no event for it."""
        self._progress_at = time.monotonic()

    def start_heartbeats(self, seconds: float = _HEARTBEAT_SECONDS) -> None:
        """From now on, write a heartbeat whenever no event was written for `seconds`."""
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
                idle = round(now - self._progress_at, 1)
                if not self._waiting:
                    event = Heartbeat(idle_seconds=idle, seq=self._next_seq, time=time.time())
                    self._waiting.append(event)
                try:
                    self._flush()
                except OSError:
                    continue  # the disk is full: the next round tries again

    def _flush(self) -> None:
        if not self._has_reserve:
            self._make_reserve()
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

    def _make_reserve(self) -> None:
        """Allocate its blocks; without them if the disk has no room."""
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
    """The events from byte `offset` on, and the offset to go on from, which is before a half-written line."""
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
