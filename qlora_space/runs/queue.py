"""The queue of this machine: one run at a time trains, first come, first served.

There is no queue server. Every worker starts at once and waits here until no live attempt is before it and the machine
lock is free. The order is that of the workers' start times in the kernel, not that in which their imports ended. The
kernel frees a lock however its process ends. Record locks (fcntl.lockf), not flock: a forked child that outlives its
worker does not hold them.
"""

import fcntl
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qlora_space.core.events import TERMINAL_KINDS, Event, Phase, Started
from qlora_space.core.processes import is_alive, is_frozen, kill_tree
from qlora_space.core.settings import Home
from qlora_space.runs.folder import RunFolder, list_runs
from qlora_space.runs.view import RunView

OTHERS_RUN = "another run"  # in place of the name of a run that is somebody else's
_POLL_SECONDS = 0.3
START_SECONDS = 60.0  # for the imports of a worker, before its first event
_TEARDOWN_SECONDS = 30.0  # what an attempt may still need after its last event
_STARTED = b'"kind":"started"'
_ENDED = re.compile(rb'"kind":"(?:%s)"' % "|".join(TERMINAL_KINDS).encode())


@dataclass(frozen=True)
class Attempt:
    """The newest worker of a run. `ended_at` is None until its last event."""

    run_id: str
    pid: int
    pid_start_time: float
    ended_at: float | None

    @property
    def is_live(self) -> bool:
        """Running or waiting. A frozen worker keeps the machine if it has it, but loses its place in the queue."""
        process = (self.pid, self.pid_start_time)
        return self.ended_at is None and is_alive(*process) and not is_frozen(*process)


def newest_attempt(run: RunFolder) -> Attempt | None:
    """Read from the end of the events without parsing them all; None before the first worker."""
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
        pid=started.pid,
        pid_start_time=started.pid_start_time,
        ended_at=json.loads(end)["time"] if end else None,
    )


def own_run(run: RunFolder) -> BinaryIO | None:
    """The lock of this run, held while the file is open; None if another worker has it."""
    return _locked(run.path / "worker.lock")


class QueueSlot:
    """A worker's slot in the queue. It has the machine from `wait` until `close` or the end of the process."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._runs_folder = run.path.parent
        self._lock: BinaryIO | None = None

    def wait(
        self,
        emit: Callable[[Event], object],
        heartbeat: Callable[[], object],
        should_leave: Callable[[], bool],
    ) -> bool:
        """True once this run has the machine, False if it should leave the queue. Emits each new queue position."""
        reported = 0
        while not should_leave():
            num_before = self._num_before()
            if not num_before:
                return True
            if num_before != reported:
                emit(Phase(name="queue", done=0, total=num_before))
                reported = num_before
            heartbeat()
            time.sleep(_POLL_SECONDS)
        return False

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _num_before(self) -> int:
        """Runs before this one; 0 once it has the machine lock."""
        runs = list_runs(self._runs_folder)
        attempts = _in_order([a for run in runs if (a := newest_attempt(run))])
        # If a full disk has not taken this run's first event yet, it comes after all others.
        others = itertools.takewhile(lambda a: a.run_id != self._run.id, attempts)
        before = sum(a.is_live for a in others)
        before += sum(_is_starting(run) for run in _older(runs, self._run))
        if before:
            return before
        self._lock = _locked(machine_lock(self._runs_folder))
        if self._lock is None:
            _end_hung(attempts)
        return 0 if self._lock else 1


@dataclass(frozen=True)
class QueuePosition:
    """The position of a waiting run."""

    num_before: int
    starts_in_seconds: float
    stalled: str = ""  # a run before it that makes no progress: its name, or OTHERS_RUN


def queue_positions(
    runs: Sequence[tuple[RunFolder, RunView]], now: float, named: Container[str]
) -> dict[str, QueuePosition]:
    """Positions of the waiting ones of `runs` (newest first) at Unix time `now`, by run id.

    `named`: ids of the runs whose names may be said.
    """
    live = [(run, view) for run, view in reversed(runs) if not view.is_over]
    live.sort(key=lambda p: (p[1].status == "queued", p[1].pid_start_time or math.inf))
    found: dict[str, QueuePosition] = {}
    seconds, stalled = 0.0, ""
    for num_before, (run, view) in enumerate(live):
        if view.status == "queued" and num_before:
            found[run.id] = QueuePosition(num_before, seconds, stalled)
        seconds += _seconds_left(run, view, now)
        if view.stalled_for(now) and not stalled:
            stalled = run.name() if run.id in named else OTHERS_RUN
    return found


def _seconds_left(run: RunFolder, view: RunView, now: float) -> float:
    if view.eta_seconds is not None:
        return view.eta_seconds
    estimate = run.plan().estimate.seconds
    return estimate if view.status == "queued" else max(0.0, estimate + view.working_since - now)


def _in_order(attempts: Sequence[Attempt]) -> list[Attempt]:
    """By start time of the worker; those of the same hundredth of a second in the order of their runs. The newest run
    is first in `attempts`."""
    oldest_first = attempts[::-1]
    return sorted(oldest_first, key=lambda a: a.pid_start_time)


def _older(runs: Sequence[RunFolder], run: RunFolder) -> list[RunFolder]:
    """Runs older than `run`; the newest is first in `runs`."""
    return list(runs)[[r.id for r in runs].index(run.id) + 1 :]


def _is_starting(run: RunFolder) -> bool:
    """Whether its worker was started a moment ago and has written no event yet."""
    try:
        stat = run.events_file.stat()
    except OSError:  # deleted meanwhile
        return False
    return not stat.st_size and time.time() - stat.st_mtime < START_SECONDS


def machine_lock(runs_folder: Path) -> Path:
    return Home.of_runs(runs_folder).machine_lock_file


def is_machine_free(runs_folder: Path) -> bool:
    """Whether no worker trains on this machine now."""
    lock = _locked(machine_lock(runs_folder))
    if lock is not None:
        lock.close()
    return lock is not None


def _end_hung(attempts: list[Attempt]) -> None:
    """Kill workers that still live long after their last event: they hold the machine for nothing."""
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
