"""Processes of this machine: whether one is alive, and how to end it with all its children."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_KILLED_SECONDS = 3.0  # until the kernel has removed it
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def start_time(pid: int) -> float:
    """Seconds from boot to the start of the process, independent of the clock; -1 if there is no such process."""
    return _state(pid)[1]


def is_alive(pid: int, started_at: float) -> bool:
    """Whether this very process is alive; ids are reused, but not with the same start time."""
    return _state_of(pid, started_at) not in ("", "Z", "X")


def is_frozen(pid: int, started_at: float) -> bool:
    """Whether this very process was stopped by a signal and waits for SIGCONT."""
    return _state_of(pid, started_at) in ("T", "t")


def wake(pid: int, started_at: float) -> None:
    """Send SIGCONT to a frozen process, so that it can react."""
    if is_frozen(pid, started_at):
        with contextlib.suppress(*_GONE):
            psutil.Process(pid).resume()


def _state_of(pid: int, started_at: float) -> str:
    letter, at = _state(pid)
    return letter if abs(at - started_at) < _TICK_SECONDS / 2 else ""


def _state(pid: int) -> tuple[str, float]:
    """State letter and start time: fields 3 and 22 of proc_pid_stat(5)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", -1.0
    fields = line.rpartition(")")[2].split()  # the name before may hold spaces
    return fields[0], int(fields[19]) * _TICK_SECONDS


def kill_tree(pid: int, grace_seconds: float = 3.0) -> None:
    """Terminate a process and everything it started, kill what is left after the grace; kill at once for 0 s."""
    try:
        parent = psutil.Process(pid)
        started = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    in_session = _session(pid) if _session_of(pid) == pid else []
    _end(dict.fromkeys([parent, *started, *in_session]), grace_seconds)


def kill_orphans(pid: int) -> None:
    """Kill what is left of the session of a dead leader; nothing for 0, which is no process.

    The kernel does not reuse the id while the session has members.
    """
    if pid and not psutil.pid_exists(pid):
        _end(_session(pid), grace_seconds=1.0)


def _end(processes: Iterable[psutil.Process], grace_seconds: float) -> None:
    alive = list(processes)
    if grace_seconds:
        for process in alive:
            with contextlib.suppress(*_GONE):
                process.terminate()
        _, alive = psutil.wait_procs(alive, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(*_GONE):
            process.kill()  # also one that is frozen: SIGKILL does not wait for SIGCONT
    psutil.wait_procs(alive, timeout=_KILLED_SECONDS)


def _session(pid: int) -> list[psutil.Process]:
    """All processes of the session that `pid` leads or led, also orphans."""
    return [process for process in psutil.process_iter() if _session_of(process.pid) == pid]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
