"""Processes of this machine: whether one lives, and how its whole tree ends."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_KILLED_SECONDS = 3.0  # until the kernel has taken it away
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def start_time(pid: int) -> float:
    """Seconds from the start of the machine to that of the process, which no change of the clock moves.

    -1 if there is no such process.
    """
    return _state(pid)[1]


def is_alive(pid: int, started_at: float) -> bool:
    """Whether that very process lives; ids are reused, start times are not."""
    return _state_of(pid, started_at) not in ("", "Z", "X")


def is_frozen(pid: int, started_at: float) -> bool:
    """Whether that very process was stopped by a signal, and waits for SIGCONT."""
    return _state_of(pid, started_at) in ("T", "t")


def wake(pid: int, started_at: float) -> None:
    """Let a frozen process go on, so that it can hear what it is asked."""
    if is_frozen(pid, started_at):
        with contextlib.suppress(*_GONE):
            psutil.Process(pid).resume()


def _state_of(pid: int, started_at: float) -> str:
    letter, at = _state(pid)
    return letter if abs(at - started_at) < _TICK_SECONDS / 2 else ""


def _state(pid: int) -> tuple[str, float]:
    """The kernel's letter for what it does, and its start: fields 3 and 22 of proc_pid_stat(5)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "", -1.0
    fields = line.rpartition(")")[2].split()  # the name before may hold spaces
    return fields[0], int(fields[19]) * _TICK_SECONDS


def kill_tree(pid: int, grace_seconds: float = 3.0) -> None:
    """Terminate a process and everything it started, then kill what is left; with no grace kill at once."""
    try:
        parent = psutil.Process(pid)
        started = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    in_session = _session(pid) if _session_of(pid) == pid else []
    _end(dict.fromkeys([parent, *started, *in_session]), grace_seconds)


def kill_orphans(pid: int) -> None:
    """Kill what a session leader that is dead has left behind; nothing for 0, which is no process.

    The kernel gives the id to nobody while the session has members.
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
    """All processes of the session that `pid` leads or led, those without a parent too."""
    return [process for process in psutil.process_iter() if _session_of(process.pid) == pid]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
