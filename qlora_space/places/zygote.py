"""The process that forks a child for each inspection: it has imported everything, so that a child is there at once.

It parses nothing itself and has one thread, so that a fork is whole. Over the control socket it receives one socket for
each request, on which the child reads the request and answers; when the asker closes it, or the server ends, the
child is killed with all that it started.
"""

import contextlib
import importlib
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from qlora_space.core.confinement import (
    die_with_parent,
    limit,
    limit_cpu,
    limit_memory,
    no_new_privileges,
)
from qlora_space.data.template.process import template_process
from qlora_space.places.inspecting import answer, import_all, start_reader
from qlora_space.places.replies import cause_of_death, imports, write_replies

MEMORY_BYTES = 1152 * 2**20  # beyond the 0.15 GiB of the imports: a child stays below 1.5 GB
CPU_SECONDS = 30.0  # until rows are tokenized, which has a budget of its own
FILE_BYTES = 256 * 2**20  # no tokenizer file is a quarter of it
_TICK_MS = 100
_GRACE_SECONDS = 0.2
_IDLE_MS = 1000
_LATE_IMPORT = (
    "qlora_space.data.reading.hub_files"  # takes seconds; only the Hub's datasets need it
)
log = logging.getLogger(__name__)


def serve_inspections(control_fd: int) -> int:
    """Fork children until the server closes the control socket."""
    die_with_parent(os.getppid())
    no_new_privileges()
    with imports():
        import_all()
    zygote = Zygote(socket.socket(fileno=control_fd))
    try:
        zygote.run()
    finally:
        zygote.close()
    return 0


@dataclass
class _Child:
    """`connection` is the child's own end: open here too, so that its death is noticed."""

    pid: int
    connection: socket.socket
    left_at: float | None = None  # when its asker left, who may also have all that he wants

    @property
    def is_forgotten(self) -> bool:
        return self.left_at is not None and time.monotonic() - self.left_at > _GRACE_SECONDS

    def kill(self) -> None:
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                end(self.pid, signal.SIGKILL)


class Zygote:
    """One per server."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}  # by the number of the connection
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._has_late_import = False
        self._had_request = False

    def run(self) -> None:
        """Until the server has gone."""
        while True:
            events = self._poll.poll(self._patience_ms())
            for number, _ in events:
                if number != self._control.fileno():
                    self._poll.unregister(number)
                    self._children[number].left_at = time.monotonic()
                elif not self._take_request():
                    return
            if not events and not self._children:
                self._import_late()
            self._bury_the_dead()

    def close(self) -> None:
        """Kill all children."""
        for child in self._children.values():
            child.kill()
        while self._children:
            self._bury_the_dead()
            time.sleep(0.01)

    def _patience_ms(self) -> int | None:
        if self._children:
            return _TICK_MS
        return _IDLE_MS if self._had_request and not self._has_late_import else None

    def _import_late(self) -> None:
        """After the first request, while nobody waits."""
        if not self._has_late_import:
            self._has_late_import = True
            importlib.import_module(_LATE_IMPORT)

    def _take_request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 1, 1)
        if not data:
            return False
        self._had_request = True
        for fd in fds:
            self._fork(socket.socket(fileno=fd))
        return True

    def _fork(self, connection: socket.socket) -> None:
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._control.close()
            for child in self._children.values():
                child.connection.close()
            _run_child(lambda: _answer_one(connection), parent)
        self._children[connection.fileno()] = _Child(pid, connection)
        self._poll.register(connection, 0)  # only whether the other end was closed

    def _bury_the_dead(self) -> None:
        for number, child in tuple(self._children.items()):
            if child.is_forgotten:
                child.kill()
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.kill()  # what it started
            log.info(
                "Child %d ended with %d after %.1f s of CPU, peak %d MiB.",
                pid,
                status,
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss // 1024,
            )
            if why := cause_of_death(status):
                _tell(child.connection, why)
            if child.left_at is None:
                self._poll.unregister(number)
            child.connection.close()
            del self._children[number]


def _run_child(work: Callable[[], None], parent: int) -> None:
    """In the child: never returns."""
    status = 1
    try:
        os.setsid()
        die_with_parent(parent)
        confine()
        work()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def confine() -> None:
    """The limits of every child. A core file would hold what it read."""
    limit_memory(MEMORY_BYTES)
    limit_cpu(CPU_SECONDS)
    limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    limit(resource.RLIMIT_CORE, 0)


def _answer_one(connection: socket.socket) -> None:
    # Before anything is known here.
    reader = start_reader()
    template_process().start_by_fork()
    with connection, connection.makefile("r") as requests, contextlib.suppress(OSError):
        line = requests.readline()
        with connection.makefile("w", buffering=1) as replies:
            write_replies(lambda message: answer(message, reader), json.loads(line), replies.write)
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()


def _tell(connection: socket.socket, why: str) -> None:
    """Why the child ended."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps({"ended": why}).encode() + b"\n", socket.MSG_DONTWAIT)
