"""Bytes of the Hub for a process that has neither network nor token, from its parent, which has both.

One JSON line each way, from the parent with so many bytes after it as the line says. The reader asks `find`, `files` or
`read`; every other line of his is an answer for the parent's own asker. The parent reads only from the one dataset that
the request names, and reads nothing of what it hands on.
"""

import io
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import IO, Any, BinaryIO, cast

from pydantic import TypeAdapter

from qlora_space.core.errors import QloraSpaceError, RequestError, error_named
from qlora_space.data.reading.hub_rows import HubFiles
from qlora_space.data.reading.streams import DataFile
from qlora_space.data.rows import Row
from qlora_space.hub import HubDataset
from qlora_space.places.replies import NotHere

_BLOCK_BYTES = 2 * 2**20
_MAX_READ_BYTES = 8 * 2**20
_MAX_LINE_CHARS = 64 * 2**20
_MAX_FILES = 10_000
_PARALLEL_READS = 8
_found = TypeAdapter(HubDataset)

Reply = dict[str, Any]


class RelayedHubFiles(HubFiles):
    """The reader's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._replies = connection.makefile("rb")
        self._requests = connection.makefile("wb")
        self._writing, self._numbers = threading.Lock(), itertools.count()
        self._waiting: dict[int, Future[tuple[Any, bytes]]] = {}
        threading.Thread(target=self._receive, daemon=True).start()

    def find(
        self, dataset: str, config: str | None, split: str | None, revision: str | None
    ) -> HubDataset:
        return _found.validate_python(self._ask("find", dataset, config, split, revision)[0])

    def files(self, found: HubDataset) -> Iterator[DataFile] | None:
        listed, _ = self._ask("files", _found.dump_python(found, mode="json"))
        if listed is None:
            return None
        return (DataFile(n, size, partial(self._open, key, size)) for key, n, size in listed)

    def stream(self, found: HubDataset) -> Iterator[Row]:
        raise NotHere  # only `datasets` can read these files, and it wants the network itself

    def send(self, line: str) -> None:
        """An answer for the parent's own asker."""
        with self._writing:
            self._requests.write(line.encode())
            self._requests.flush()

    def read(self, key: int, offset: int, length: int) -> bytes:
        return self._ask("read", key, offset, min(length, _MAX_READ_BYTES))[1]

    def _open(self, key: int, size: int) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_RelayedFile(self, key, size), _BLOCK_BYTES))

    def _ask(self, what: str, *arguments: object) -> tuple[Any, bytes]:
        number, reply = next(self._numbers), Future[tuple[Any, bytes]]()
        self._waiting[number] = reply
        self.send(json.dumps({"ask": what, "number": number, "arguments": arguments}) + "\n")
        value, content = reply.result()
        if "refused" in value:
            raise error_named(*value["refused"])
        return value["value"], content

    def _receive(self) -> None:
        while line := self._replies.readline():
            value = json.loads(line)
            content = self._replies.read(value["num_bytes"])
            self._waiting.pop(value["number"]).set_result((value, content))


class _RelayedFile(io.RawIOBase):
    """A file on the Hub, read in pieces from wherever it is asked for."""

    def __init__(self, hub_files: RelayedHubFiles, key: int, size: int) -> None:
        self._hub_files, self._key, self._size, self._at = hub_files, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._at))
        content = self._hub_files.read(self._key, self._at, length) if length else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class HubRelay:
    """The parent's end: answers what the reader asks, of one dataset at one revision."""

    def __init__(
        self,
        connection: socket.socket,
        dataset: str,
        revision: str | None,
        hub_files: Callable[[], HubFiles],
    ) -> None:
        self._dataset, self._revision = dataset, revision
        self._make_hub_files = hub_files
        self._hub_files: HubFiles | None = None
        self._shas: set[str] = set()
        self._files: list[tuple[DataFile, threading.Lock]] = []
        self._opened: dict[int, BinaryIO] = {}
        self._lines = connection.makefile("r")
        self._replies: IO[bytes] = connection.makefile("wb")
        self._lock = threading.Lock()

    def answers(self) -> Iterator[str]:
        """What the reader has to say, while his requests are served; until he ends."""
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            while line := self._lines.readline(_MAX_LINE_CHARS):
                message = json.loads(line)
                if "ask" in message:
                    pool.submit(self._serve, message)
                else:
                    yield line

    def _serve(self, message: Reply) -> None:
        reply, content = {"number": message["number"], "num_bytes": 0}, b""
        try:
            value, content = self._value(message["ask"], message["arguments"])
            reply |= {"value": value, "num_bytes": len(content)}
        except QloraSpaceError as error:
            reply["refused"] = [type(error).__name__, error.what, error.hint]
        except Exception as error:  # the reader must not wait for ever
            reply["refused"] = ["HubError", f"The Hub's files cannot be read: {error!r:.200}.", ""]
        with self._lock:
            self._replies.write(json.dumps(reply).encode() + b"\n" + content)
            self._replies.flush()

    def _value(self, what: str, arguments: list[Any]) -> tuple[Any, bytes]:
        match what, arguments:
            case "find", [self._dataset, config, split, self._revision]:
                found = self._direct().find(self._dataset, config, split, self._revision)
                self._shas.add(found.sha)
                return asdict(found), b""
            case "files", [found]:
                return self._list(_found.validate_python(found)), b""
            case "read", [int(key), int(offset), int(length)] if 0 <= length <= _MAX_READ_BYTES:
                return None, self._read(key, offset, length)
        raise RequestError(f"The reader asks {what[:20]!r} of what he may not read.")

    def _direct(self) -> HubFiles:
        with self._lock:
            if self._hub_files is None:
                self._hub_files = self._make_hub_files()
            return self._hub_files

    def _list(self, found: HubDataset) -> list[tuple[int, str, int]] | None:
        if found.id != self._dataset or found.sha not in self._shas:
            raise RequestError("The reader asks for files of another dataset.")
        files = self._direct().files(found)
        if files is None:
            return None
        with self._lock:
            first = len(self._files)
            self._files += [(f, threading.Lock()) for f in itertools.islice(files, _MAX_FILES)]
            return [
                (first + i, f.name, f.num_bytes) for i, (f, _) in enumerate(self._files[first:])
            ]

    def _read(self, key: int, offset: int, length: int) -> bytes:
        file, lock = self._files[key]
        with lock:
            if key not in self._opened:
                self._opened[key] = file.open()
            self._opened[key].seek(offset)
            return self._opened[key].read(length)
