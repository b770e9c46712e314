"""events.jsonl: appended by one process, read from an offset by any."""

import errno
import os
import threading
import time
from pathlib import Path

from qlora_space.events import TERMINAL_KINDS, Event, event_from_line, event_to_line


class EventLog:
    """The writing end. One per attempt; continues `seq` and mends a line cut by a kill."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(file, len(whole))
        self._next_seq = whole.count(b"\n")
        self._file = file.open("ab", buffering=0)

    def append(self, event: Event) -> Event:
        """Stamp with seq and time, write one line. Terminal events are on disk when it returns.

        Raises OSError; nothing of the line is in the file then.
        """
        with self._lock:
            stamped = event.model_copy(update={"seq": self._next_seq, "time": time.time()})
            self._write_whole(event_to_line(stamped).encode() + b"\n")
            self._next_seq += 1
            if stamped.kind in TERMINAL_KINDS:
                os.fsync(self._file.fileno())
        return stamped

    def _write_whole(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) < len(line):
            os.ftruncate(self._file.fileno(), start)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        self._file.close()


def read_events(file: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Whole lines from byte `offset` on, and the offset to go on from. A half-written line waits."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return [], offset
    end = content.rfind(b"\n") + 1
    return [event_from_line(line) for line in content[:end].splitlines()], offset + end
