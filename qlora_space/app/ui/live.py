"""A run that is being watched: its events are read from an offset and folded on, never twice."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from qlora_space.app.actions import Actions
from qlora_space.app.ui.render.changes import MOST_BESIDE, Beside
from qlora_space.core.errors import RunError
from qlora_space.core.events import Event
from qlora_space.core.wording import age, without_folders
from qlora_space.plan import Plan
from qlora_space.runs import QueuePosition, RunFolder, RunView, fold, read_events

_SILENT_SECONDS = 10.0
_QUEUE_SECONDS = 2.0
_LOG_BYTES = 20_000
_OTHERS = 50


@dataclass
class LiveRun:
    """What one browser tab has seen of a run. Lives in gr.State, on the server."""

    run: RunFolder
    plan: Plan
    view: RunView = field(default_factory=RunView)
    events: list[Event] = field(default_factory=list)
    offset: int = 0
    shown: dict[str, str] = field(default_factory=dict)
    shown_steps: list[int] = field(default_factory=list)
    shown_standing: tuple[object, ...] = ()
    place: QueuePosition | None = None
    resume_step: int | None = None
    origin: RunFolder | None = None
    asked_at: float = 0.0
    beside: list[Beside] = field(default_factory=list)
    reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def advance(self, actions: Actions) -> None:
        """Fold what is new. After a silence, have the run looked at: its worker may be dead."""
        with self.reading:  # several handlers of a tab may look at once
            new, self.offset = read_events(self.run.events_file, self.offset)
            self.events += new
            self.view = fold(new, self.view)
        if self.view.status == "queued" and time.time() - self.asked_at > _QUEUE_SECONDS:
            self.asked_at = time.time()
            self.place = actions.queue_positions().get(self.run.id)
        self.resume_step = actions.resume_step(self.run, self.view)
        is_silent = time.time() - max(self.view.last_at, self.asked_at) > _SILENT_SECONDS
        if is_silent and not self.view.is_over:
            self.asked_at = time.time()
            actions.view(self.run)

    def others(self, actions: Actions) -> list[tuple[str, str]]:
        """(words, id) of the runs that can be laid over this one, newest first."""
        found = [(run, view) for run, view in actions.runs() if view.metrics and run != self.run]
        return [(f"{run.name()}, {age(view.started_at)}", run.id) for run, view in found[:_OTHERS]]

    def lay_beside(self, actions: Actions, run_ids: Sequence[str]) -> None:
        """Those runs as they are now; one that was deleted is left out."""
        self.beside = []
        for run_id in run_ids[:MOST_BESIDE]:
            with contextlib.suppress(RunError):
                run = actions.run(run_id)
                self.beside.append(Beside(run.name(), run.plan(), actions.view(run)))

    def changed(self, pieces: dict[str, str]) -> dict[str, str]:
        """Those pieces of the page that differ from what the tab shows."""
        new = {name: piece for name, piece in pieces.items() if self.shown.get(name) != piece}
        self.shown |= new
        return new


def open_run(actions: Actions, run: RunFolder) -> LiveRun:
    """Start to watch, with everything that happened so far."""
    actions.view(run)
    live = LiveRun(run, run.plan(), origin=run.origin())
    live.advance(actions)
    return live


def log_tail(actions: Actions, run: RunFolder) -> str:
    """The end of worker.log, without the server's folders."""
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, run.log_file.stat().st_size - _LOG_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return without_folders(tail.replace(str(actions.settings.home), "…"))
