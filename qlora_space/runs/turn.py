"""Whose turn it is: one run at a time has this machine, first come, first served.

Nobody hands out turns. Every worker starts at once and waits here until no live attempt is before it and the
lock of the machine is free. The kernel frees the lock of a process however it ends, so the queue needs no
server. Record locks (fcntl.lockf) and not flock: a forked child that outlives its worker does not keep them.
"""

import fcntl
import functools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qlora_space.events import TERMINAL_KINDS, Event, Phase, Started
from qlora_space.processes import is_alive, is_frozen, kill_tree
from qlora_space.runs.folder import RunFolder, list_runs
from qlora_space.runs.view import RunView

_POLL_SECONDS = 0.3
_TEARDOWN_SECONDS = 30.0  # what an attempt may still need after its last event
_STARTED = b'"kind":"started"'
_ENDED = re.compile(rb'"kind":"(?:%s)"' % "|".join(TERMINAL_KINDS).encode())


@dataclass(frozen=True)
class Attempt:
    """The newest worker of a run. `ended_at` is None until its last event."""

    run_id: str
    started_at: float
    pid: int
    pid_start_time: float
    ended_at: float | None

    @property
    def is_live(self) -> bool:
        """Running or waiting. A frozen one that has the machine keeps its lock, one that waits loses its place."""
        me = (self.pid, self.pid_start_time)
        return self.ended_at is None and is_alive(*me) and not is_frozen(*me)


def newest_attempt(run: RunFolder) -> Attempt | None:
    """Read from the end of the events, without parsing them all; None before the first worker."""
    try:
        stat = run.events_file.stat()
        return _newest_attempt(run.events_file, stat.st_size, stat.st_mtime_ns)
    except OSError:  # deleted meanwhile
        return None


@functools.lru_cache(maxsize=1024)
def _newest_attempt(file: Path, size: int, changed_at: int) -> Attempt | None:
    content = file.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    at = content.rfind(_STARTED)
    if at < 0:
        return None
    lines = content[content.rfind(b"\n", 0, at) + 1 :].splitlines()
    started = Started.model_validate_json(lines[0])
    end = next((line for line in lines if _ENDED.search(line)), None)
    return Attempt(
        run_id=file.parent.name,
        started_at=started.time,
        pid=started.pid,
        pid_start_time=started.pid_start_time,
        ended_at=json.loads(end)["time"] if end else None,
    )


def own_run(run: RunFolder) -> BinaryIO | None:
    """Held open, it keeps every other worker away from this run; None if another has it."""
    return _locked(run.path / "worker.lock")


class Turn:
    """One worker's place in the queue; holds the machine until `close` or the end of the process."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._runs_folder = run.path.parent
        self._lock: BinaryIO | None = None

    def wait(
        self,
        emit: Callable[[Event], object],
        pulse: Callable[[], object],
        should_leave: Callable[[], bool],
    ) -> bool:
        """True once the machine is this run's; False when it is to leave the queue. Tells its place."""
        told = 0
        while not should_leave():
            before = self._num_before()
            if not before:
                return True
            if before != told:
                emit(Phase(name="queue", done=0, total=before))
                told = before
            pulse()
            time.sleep(_POLL_SECONDS)
        return False

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _num_before(self) -> int:
        """Runs before this one; 0 once it has the lock."""
        attempts = [a for run in list_runs(self._runs_folder) if (a := newest_attempt(run))]
        # A full disk may not have taken this one's first word yet: then it comes after all others.
        mine = next((_place(a) for a in attempts if a.run_id == self._run.id), (math.inf, ""))
        before = [a for a in attempts if _place(a) < mine and a.is_live]
        if before:
            return len(before)
        self._lock = _locked(machine_lock(self._runs_folder))
        if self._lock is None:
            _end_wedged(attempts)
        return 0 if self._lock else 1


@dataclass(frozen=True)
class Place:
    """A waiting run's place in the queue."""

    num_before: int
    starts_in_seconds: float
    stalled: str = ""  # name of a run before it that does not get on


def places(runs: Sequence[tuple[RunFolder, RunView]], now: float) -> dict[str, Place]:
    """Of those that wait, by run id, at Unix time `now`: the time left of all runs before them."""
    live = [(run, view) for run, view in runs if not view.is_over]
    live.sort(key=lambda p: (p[1].status == "queued", p[1].started_at or now, p[0].id))
    found: dict[str, Place] = {}
    seconds, stalled = 0.0, ""
    for num_before, (run, view) in enumerate(live):
        if view.status == "queued" and num_before:
            found[run.id] = Place(num_before, seconds, stalled)
        seconds += _seconds_left(run, view, now)
        stalled = stalled or (run.name() if view.stalled_for(now) else "")
    return found


def _seconds_left(run: RunFolder, view: RunView, now: float) -> float:
    if view.eta_seconds is not None:
        return view.eta_seconds
    estimate = run.plan().estimate.seconds
    return estimate if view.status == "queued" else max(0.0, estimate + view.working_since - now)


def _place(attempt: Attempt) -> tuple[float, str]:
    return attempt.started_at, attempt.run_id


def machine_lock(runs_folder: Path) -> Path:
    return runs_folder.parent / "machine.lock"


def is_machine_free(runs_folder: Path) -> bool:
    """Whether no worker trains on this machine now."""
    lock = _locked(machine_lock(runs_folder))
    if lock is not None:
        lock.close()
    return lock is not None


def _end_wedged(attempts: list[Attempt]) -> None:
    """A worker that told its end long ago and still lives keeps the machine for nothing."""
    for attempt in attempts:
        is_late = attempt.ended_at and time.time() - attempt.ended_at > _TEARDOWN_SECONDS
        if is_late and is_alive(attempt.pid, attempt.pid_start_time):
            kill_tree(attempt.pid, grace_seconds=1.0)


def _locked(path: Path) -> BinaryIO | None:
    file = path.open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
