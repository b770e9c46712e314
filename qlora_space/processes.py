"""Processes of this machine: whether one lives, and how its whole tree ends."""

import contextlib
import os
from collections.abc import Iterable

import psutil

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def is_alive(pid: int, start_time: float) -> bool:
    """Whether that very process lives; ids are reused, start times are not."""
    return _status(pid, start_time) not in (None, psutil.STATUS_ZOMBIE)


def is_frozen(pid: int, start_time: float) -> bool:
    """Whether that very process was stopped by a signal, and waits for SIGCONT."""
    return _status(pid, start_time) == psutil.STATUS_STOPPED


def wake(pid: int, start_time: float) -> None:
    """Let a frozen process go on, so that it can hear what it is asked."""
    if is_frozen(pid, start_time):
        with contextlib.suppress(*_GONE):
            psutil.Process(pid).resume()


def _status(pid: int, start_time: float) -> str | None:
    try:
        process = psutil.Process(pid)
        return process.status() if abs(process.create_time() - start_time) < 1 else None
    except _GONE:
        return None


def kill_tree(pid: int, grace_seconds: float = 3.0) -> None:
    """Terminate a process and everything it started, then kill what is left."""
    try:
        parent = psutil.Process(pid)
        started = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    in_session = _session(pid) if _session_of(pid) == pid else []
    _end(dict.fromkeys([parent, *started, *in_session]), grace_seconds)


def kill_orphans(pid: int) -> None:
    """Kill what a session leader that is dead has left behind."""
    if not psutil.pid_exists(
        pid
    ):  # while the session has members the kernel gives the id to nobody
        _end(_session(pid), grace_seconds=1.0)


def _end(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(*_GONE):
            process.kill()  # also one that is frozen: SIGKILL does not wait for SIGCONT
    psutil.wait_procs(alive, timeout=grace_seconds)


def _session(pid: int) -> list[psutil.Process]:
    """All processes of the session that `pid` leads or led, those without a parent too."""
    return [process for process in psutil.process_iter() if _session_of(process.pid) == pid]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
