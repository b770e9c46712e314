"""A run as a person sees it, folded from its events. Nothing here is stored anywhere."""

import functools
import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qlora_space.core.events import (
    Checkpoint,
    Event,
    Failed,
    Gate,
    Metric,
    Note,
    Phase,
    Rollback,
    Sample,
)
from qlora_space.runs.folder import RunFolder
from qlora_space.runs.log import read_events

_SILENT_SECONDS = 45.0  # three heartbeats
_STUCK_SECONDS = 60.0
_STUCK_LOADING_SECONDS = 600.0  # one download or one load tells nothing in between
_STUCK_STEPS = 10.0
_PACE_STEPS = 50
Status = Literal[
    "queued", "preparing", "training", "finishing", "finished", "failed", "cancelled", "paused"
]


@dataclass
class RunView:
    """Mutable so that a live page folds new events into it instead of starting over."""

    status: Status = "queued"
    place: str = ""
    pid: int = 0
    pid_start_time: float = 0.0
    attempts: int = 0
    started_at: float = 0.0
    last_at: float = 0.0
    working_since: float = 0.0
    idle_seconds: float = 0.0
    phase: Phase | None = None
    step: int = 0
    total_steps: int = 0
    metrics: list[Metric] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    rollbacks: list[Rollback] = field(default_factory=list)
    gate: Gate | None = None
    failure: Failed | None = None
    stopped_early: bool = False
    num_events: int = 0

    @property
    def is_over(self) -> bool:
        return self.status in ("finished", "failed", "cancelled", "paused")

    def latest(self, name: str) -> float | None:
        """Newest value of a metric."""
        return next((m.values[name] for m in reversed(self.metrics) if name in m.values), None)

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) in order; a step that was done again after a resume keeps its last value."""
        points = {m.step: m.values[name] for m in self.metrics if name in m.values}
        return sorted(points.items())

    def stalled_for(self, now: float) -> str:
        """Why it is not to be called running at Unix time `now`; '' while all is well or it is over."""
        if self.is_over or not self.attempts:
            return ""
        silent = now - self.last_at
        if silent > _SILENT_SECONDS:
            return f"not heard of for {_rounded(silent)}: stopped or frozen"
        idle = self.idle_seconds + silent
        if self.idle_seconds and idle > self._patience_seconds:
            return f"stuck: it lives, but nothing got done for {_rounded(idle)}"
        return ""

    @property
    def warning(self) -> str:
        """What went wrong since the newest checkpoint, while it still matters; else ''."""
        saved = self.checkpoints[-1].seq if self.checkpoints else -1
        new = [n.text for n in self.notes if n.level != "info" and n.seq > saved]
        return new[-1] if new and self.status == "training" else ""

    @property
    def _patience_seconds(self) -> float:
        if self.status != "training":
            return _STUCK_LOADING_SECONDS
        times = [m.time for m in self.metrics[-_PACE_STEPS:] if "loss" in m.values]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(_STUCK_SECONDS, _STUCK_STEPS * statistics.median(gaps) if gaps else 0.0)

    @property
    def seconds_per_step(self) -> float | None:
        """Mean pace of this attempt, evaluations and saves included; None before there are three steps."""
        steps = [m for m in self.metrics if "loss" in m.values and m.time >= self.started_at]
        if len(steps) < 3:
            return None
        first, last = steps[1], steps[-1]  # the first step waits for first kernels
        return (last.time - first.time) / (last.step - first.step)

    @property
    def eta_seconds(self) -> float | None:
        if self.status != "training" or self.seconds_per_step is None:
            return None
        return (self.total_steps - self.step) * self.seconds_per_step


def fold(events: Iterable[Event], view: RunView | None = None) -> RunView:
    """Apply events in order to `view` (a new one if None) and return it."""
    view = view or RunView()
    for event in events:
        view.num_events += 1
        view.last_at = event.time
        view.idle_seconds = event.idle_seconds if event.kind == "heartbeat" else 0.0
        _apply(view, event)
    return view


_STATUS_OF_PHASE: dict[str, Status] = {
    "queue": "queued",
    "data": "preparing",
    "model": "preparing",
    "heal": "preparing",
    "train": "training",
    "save": "finishing",
    "report": "finishing",
    "publish": "finishing",
}


def _apply(view: RunView, event: Event) -> None:
    match event.kind:
        case "started":
            view.status, view.place, view.failure = "preparing", event.place, None
            view.pid, view.pid_start_time = event.pid, event.pid_start_time
            view.attempts += 1
            view.started_at = view.working_since = event.time
            view.phase, view.stopped_early = None, False
            _go_back(view, event.resume_step)
        case "phase":
            if view.phase is not None and view.phase.name == "queue":
                view.working_since = event.time
            view.phase = event
            view.status = _STATUS_OF_PHASE.get(event.name, view.status)
        case "metric":
            if "loss" in event.values and event.step <= view.step:
                _go_back(
                    view, event.step - 1
                )  # a resume from an older checkpoint than it hoped for
            view.metrics.append(event)
            view.step, view.total_steps = event.step, event.total_steps
        case "sample":
            view.samples.append(event)
        case "gate":
            view.gate = event
        case "note":
            view.notes.append(event)
        case "checkpoint":
            view.checkpoints.append(event)
        case "rollback":
            view.rollbacks.append(event)
            _go_back(view, event.to_step)
        case "finished" | "failed" | "cancelled" | "paused":
            view.status = event.kind
            view.failure = event if event.kind == "failed" else None
            view.stopped_early = event.kind == "finished" and event.stopped_early


def _go_back(view: RunView, step: int) -> None:
    """What is done again is told again: curves have neither a gap nor two values for a step."""
    view.metrics = [m for m in view.metrics if m.step <= step]
    view.samples = [s for s in view.samples if s.step <= step]
    view.checkpoints = [c for c in view.checkpoints if c.step <= step]
    view.step = min(view.step, step)


def _rounded(seconds: float) -> str:
    return f"{seconds // 10 * 10:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min"


def view_of(run: RunFolder) -> RunView:
    """Fold the whole file. The view is shared with other callers: fold nothing into it."""
    try:
        stat = run.events_file.stat()
    except FileNotFoundError:
        return RunView()
    return _view_of(run.events_file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _view_of(file: Path, size: int, changed_at: int) -> RunView:
    events, _ = read_events(file)
    return fold(events)
