"""The state of a run, folded from its events. Nothing here is stored anywhere."""

import functools
import itertools
import os
import statistics
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qlora_space.core.events import (
    Checkpoint,
    Event,
    Failed,
    Gate,
    Metric,
    Note,
    Paused,
    Phase,
    Rollback,
    Sample,
    Slice,
    Started,
)
from qlora_space.runs.folder import RunFolder
from qlora_space.runs.log import read_events

_SILENT_SECONDS = 45.0  # three heartbeats
_STUCK_SECONDS = 60.0
_STUCK_LOADING_SECONDS = 600.0  # one download or one load reports nothing in between
_STUCK_STEPS = 10.0  # of the usual length
_RECENT_METRICS = 50
Status = Literal[
    "queued",
    "waiting",
    "preparing",
    "training",
    "finishing",
    "finished",
    "failed",
    "cancelled",
    "paused",
]


@dataclass(frozen=True)
class RunView:
    """What is known of a run. Times are Unix times in seconds; `fold` makes the view of more events."""

    status: Status = "queued"
    device_label: str = ""
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
    metrics: tuple[Metric, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[Note, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    gate: Gate | None = None
    failure: Failed | None = None
    pause: Paused | None = None
    slice: Slice | None = None
    stopped_by_hand: bool = False
    num_events: int = 0

    @property
    def is_over(self) -> bool:
        return self.status in ("finished", "failed", "cancelled", "paused")

    def latest(self, name: str) -> float | None:
        """Value of a metric at the last step that has one."""
        series = self.series(name)
        return series[-1][1] if series else None

    def series(self, name: str) -> Sequence[tuple[int, float]]:
        """(step, value) in order of steps; a step that was repeated after a resume has its last value."""
        return self._series.get(name, ())

    @functools.cached_property
    def _series(self) -> dict[str, list[tuple[int, float]]]:
        """All of them in one pass: charts ask for each, several times."""
        points: dict[str, dict[int, float]] = {}
        for metric in self.metrics:
            for name, value in metric.values.items():
                points.setdefault(name, {})[metric.step] = value
        return {name: sorted(values.items()) for name, values in points.items()}

    def stalled_for(self, now: float) -> str:
        """Why the run does not look alive at Unix time `now`; '' while it does, and when it is over."""
        if self.is_over or not self.attempts or self._waits_for_job:
            return ""
        silent = now - self.last_at
        if silent > _SILENT_SECONDS:
            return f"not heard of for {_rounded(silent)}: stopped or frozen"
        idle = self.idle_seconds + silent
        if self.idle_seconds and idle > self._stuck_after_seconds:
            return f"stuck: it lives, but nothing got done for {_rounded(idle)}"
        return ""

    @property
    def _waits_for_job(self) -> bool:
        """A machine that is not there yet reports nothing."""
        return self.phase is not None and self.phase.name == "job"

    @property
    def warning(self) -> str:
        """The newest warning since the newest checkpoint, while the run trains; else ''."""
        saved = self.checkpoints[-1].seq if self.checkpoints else -1
        new = [n.text for n in self.notes if n.level != "info" and n.seq > saved]
        return new[-1] if new and self.status == "training" else ""

    @property
    def _stuck_after_seconds(self) -> float:
        if self.status != "training":
            return _STUCK_LOADING_SECONDS
        times = [m.time for m in self.metrics[-_RECENT_METRICS:] if "loss" in m.values]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(_STUCK_SECONDS, _STUCK_STEPS * statistics.median(gaps) if gaps else 0.0)

    @property
    def seconds_per_step(self) -> float | None:
        """Mean of this attempt, evaluations and checkpoints included; None before its third step."""
        last = next(self._steps_of_attempt(reversed(self.metrics)), None)
        # The first step also compiles and loads kernels.
        first = next(itertools.islice(self._steps_of_attempt(self.metrics), 1, None), None)
        if first is None or last is None or last.step <= first.step:
            return None
        return (last.time - first.time) / (last.step - first.step)

    def _steps_of_attempt(self, metrics: Iterable[Metric]) -> Iterator[Metric]:
        """Of its last slice alone, if it goes in slices: between them nothing is trained."""
        began = max(self.started_at, self.slice.time if self.slice else 0.0)
        return (m for m in metrics if "loss" in m.values and m.time >= began)

    @property
    def eta_seconds(self) -> float | None:
        seconds = self.seconds_per_step if self.status == "training" else None
        return None if seconds is None else (self.total_steps - self.step) * seconds


_STATUS_OF_PHASE: dict[str, Status] = {
    "queue": "queued",
    "job": "queued",
    "data": "preparing",
    "model": "preparing",
    "heal": "preparing",
    "train": "training",
    "save": "finishing",
    "report": "finishing",
    "publish": "finishing",
}


def fold(events: Iterable[Event], view: RunView | None = None) -> RunView:
    """The view after `events`, in order, on top of `view` (a run without events if None)."""
    events = tuple(events)
    draft = _Draft(view or RunView())
    for event in events:
        draft.apply(event)
    return draft.view_after(events)


class _Draft:
    """A view while events are applied to it: what grows with the run is in lists until `view_after`."""

    def __init__(self, view: RunView) -> None:
        self._before = view
        self._only_grew = True
        self._view = view  # with the fields that few events change
        self._step, self._total_steps = view.step, view.total_steps
        self._metrics = list(view.metrics)
        self._samples = list(view.samples)
        self._notes = list(view.notes)
        self._checkpoints = list(view.checkpoints)
        self._rollbacks = list(view.rollbacks)

    def view_after(self, events: Sequence[Event]) -> RunView:
        if not events:
            return self._view
        last = events[-1]
        view = replace(
            self._view,
            last_at=last.time,
            idle_seconds=last.idle_seconds if last.kind == "heartbeat" else 0.0,
            num_events=self._view.num_events + len(events),
            step=self._step,
            total_steps=self._total_steps,
            metrics=tuple(self._metrics),
            samples=tuple(self._samples),
            notes=tuple(self._notes),
            checkpoints=tuple(self._checkpoints),
            rollbacks=tuple(self._rollbacks),
        )
        known = vars(self._before).get("_series")
        if known is not None and self._only_grew:
            longer = _longer(known, self._metrics[len(self._before.metrics) :])
            if longer is not None:
                vars(view)["_series"] = longer
        return view

    def apply(self, event: Event) -> None:
        match event.kind:
            case "started":
                self._start(event)
            case "phase":
                self._enter(event)
            case "metric":
                self._add(event)
            case "sample":
                self._samples.append(event)
            case "gate":
                self._view = replace(self._view, gate=event)
            case "slice":
                status = "preparing" if event.state == "runs" else "waiting"
                self._view = replace(self._view, slice=event, phase=None, status=status)
            case "note":
                self._notes.append(event)
            case "checkpoint":
                self._checkpoints.append(event)
            case "rollback":
                self._rollbacks.append(event)
                self._go_back(event.to_step)
            case "finished" | "failed" | "cancelled" | "paused":
                self._view = replace(
                    self._view,
                    status=event.kind,
                    failure=event if event.kind == "failed" else None,
                    pause=event if event.kind == "paused" else None,
                    slice=None,
                    stopped_by_hand=event.kind == "finished" and event.stopped_by_hand,
                )

    def _start(self, event: Started) -> None:
        self._view = replace(
            self._view,
            status="preparing",
            device_label=event.place,
            pid=event.pid,
            pid_start_time=event.pid_start_time,
            attempts=self._view.attempts + 1,
            started_at=event.time,
            working_since=event.time,
            phase=None,
            failure=None,
            pause=None,
            slice=None,
            stopped_by_hand=False,
        )
        self._go_back(event.resume_step)

    def _enter(self, phase: Phase) -> None:
        view = self._view
        was_queued = view.phase is not None and view.phase.name in ("queue", "job")
        self._view = replace(
            view,
            phase=phase,
            status=_STATUS_OF_PHASE.get(phase.name, view.status),
            working_since=phase.time if was_queued else view.working_since,
        )
        if phase.name == "train":  # counted from the prepared data
            self._total_steps = phase.total

    def _add(self, metric: Metric) -> None:
        # A step that is there already: the attempt goes on from an older checkpoint than it had announced.
        if "loss" in metric.values and metric.step <= self._step:
            self._go_back(metric.step - 1)
        self._metrics.append(metric)
        self._step, self._total_steps = metric.step, metric.total_steps

    def _go_back(self, step: int) -> None:
        """Drop what will be reported again: curves have neither a gap nor two values for a step."""
        self._only_grew = False
        self._metrics = [m for m in self._metrics if m.step <= step]
        self._samples = [s for s in self._samples if s.step <= step]
        self._checkpoints = [c for c in self._checkpoints if c.step <= step]
        self._step = min(self._step, step)


def _longer(
    series: dict[str, list[tuple[int, float]]], metrics: Sequence[Metric]
) -> dict[str, list[tuple[int, float]]] | None:
    """With the metrics of later steps; None if a step is no later one. A run of many steps has a new view several
    times a second."""
    longer = dict(series)
    for metric in metrics:
        for name, value in metric.values.items():
            if longer.get(name) is series.get(name):
                longer[name] = list(series.get(name, ()))
            if longer[name] and longer[name][-1][0] >= metric.step:
                return None
            longer[name].append((metric.step, value))
    return longer


def _rounded(seconds: float) -> str:
    return f"{seconds // 10 * 10:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min"


@dataclass(frozen=True)
class _Read:
    """How far a file of events was read, and the view of what was read. `end` are the last bytes of it."""

    inode: int = 0
    changed_at: int = 0
    offset: int = 0
    end: bytes = b""
    view: RunView = field(default_factory=RunView)

    def is_of(self, stat: os.stat_result) -> bool:
        return (stat.st_ino, stat.st_mtime_ns) == (self.inode, self.changed_at)


_CACHED_VIEWS = 256
_END_BYTES = 200
_reads: dict[Path, _Read] = {}
_reading = threading.Lock()


def view_of(run: RunFolder) -> RunView:
    """The view of all its events. It is kept, and only events that are new are read."""
    try:
        stat = run.events_file.stat()
    except FileNotFoundError:
        return RunView()
    known = _reads.get(run.events_file)
    if known is None or not known.is_of(stat):
        with _reading:  # one thread reads, and the others find what it has read
            known = _reads.pop(run.events_file, _Read())
            if not known.is_of(stat):
                known = _read_on(run.events_file, known, stat)
            _reads[run.events_file] = known
            if len(_reads) > _CACHED_VIEWS:
                del _reads[next(iter(_reads))]
    return known.view


def _read_on(file: Path, known: _Read, stat: os.stat_result) -> _Read:
    if stat.st_ino != known.inode or _end_of(file, known.offset) != known.end:  # another file
        known = _Read()
    events, offset = read_events(file, known.offset)
    return _Read(
        stat.st_ino, stat.st_mtime_ns, offset, _end_of(file, offset), fold(events, known.view)
    )


def _end_of(file: Path, offset: int) -> bytes:
    """The bytes before an offset: time and `seq` of the last event are among them."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, offset - _END_BYTES))
            return stream.read(min(offset, _END_BYTES))
    except FileNotFoundError:
        return b""


def step_to_resume(run: RunFolder, view: RunView) -> int | None:
    """Step that resuming continues after, 0 if nothing was learned; None if it is running, done or discarded."""
    is_done = view.status == "finished" and not view.stopped_by_hand
    if not view.is_over or is_done:
        return None
    step = run.resume_step()
    return 0 if step is None and view.status in ("paused", "failed") else step
