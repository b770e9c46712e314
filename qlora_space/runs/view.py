"""A run as a person sees it, folded from its events. Nothing here is stored anywhere."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from qlora_space.events import (
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
            view.started_at = event.time
        case "phase":
            view.phase = event
            view.status = _STATUS_OF_PHASE.get(event.name, view.status)
        case "metric":
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
        case "finished" | "failed" | "cancelled" | "paused":
            view.status = event.kind
            view.failure = event if event.kind == "failed" else None
            view.stopped_early = event.kind == "finished" and event.stopped_early


def view_of(run: RunFolder) -> RunView:
    """Fold the whole file."""
    events, _ = read_events(run.events_file)
    return fold(events)
