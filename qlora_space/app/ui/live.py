"""A run that a browser tab is watching: new events are read from an offset and folded in once."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from qlora_space.app.actions import Actions
from qlora_space.app.ui.render.changes import MAX_COMPARED, ComparedRun
from qlora_space.core.errors import RunError
from qlora_space.core.events import Event
from qlora_space.core.wording import age, without_folders
from qlora_space.plan import Plan
from qlora_space.runs import QueuePosition, RunFolder, RunView, fold, read_events

_SILENT_SECONDS = 10.0
_QUEUE_SECONDS = 2.0
_LOG_BYTES = 20_000
_MAX_OTHER_RUNS = 50


@dataclass
class LiveRun:
    """What one tab knows and shows of a run. Lives in gr.State, on the server."""

    run: RunFolder
    plan: Plan
    view: RunView = field(default_factory=RunView)
    events: list[Event] = field(default_factory=list)
    offset: int = 0
    shown_pieces: dict[str, str] = field(default_factory=dict)
    shown_sample_steps: list[int] = field(default_factory=list)
    shown_state: tuple[object, ...] = ()
    queue_position: QueuePosition | None = None
    resume_step: int | None = None
    origin: RunFolder | None = None
    checked_at: float = 0.0
    compared: list[ComparedRun] = field(default_factory=list)
    reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def advance(self, actions: Actions) -> None:
        """Fold new events in. After a silence, check on the run: its worker may be dead. Raises RunError if it is not
        this visitor's."""
        actions.run(self.run.id)
        with self.reading:  # several handlers of a tab may refresh at once
            new, self.offset = read_events(self.run.events_file, self.offset)
            self.events += new
            self.view = fold(new, self.view)
        if self.view.status == "queued" and time.time() - self.checked_at > _QUEUE_SECONDS:
            self.checked_at = time.time()
            self.queue_position = actions.queue_positions().get(self.run.id)
        self.resume_step = actions.resume_step(self.run, self.view)
        is_silent = time.time() - max(self.view.last_at, self.checked_at) > _SILENT_SECONDS
        if is_silent and not self.view.is_over:
            self.checked_at = time.time()
            actions.view(self.run)

    def other_runs(self, actions: Actions) -> list[tuple[str, str]]:
        """(label, id) of the runs that this one can be compared with, newest first."""
        found = [(run, view) for run, view in actions.runs() if view.metrics and run != self.run]
        return [
            (f"{run.name()}, {age(view.started_at)}", run.id)
            for run, view in found[:_MAX_OTHER_RUNS]
        ]

    def compare_with(self, actions: Actions, run_ids: Sequence[str]) -> None:
        """Load those runs as they are now; one that was deleted is left out."""
        self.compared = []
        for run_id in run_ids[:MAX_COMPARED]:
            with contextlib.suppress(RunError):
                run = actions.run(run_id)
                self.compared.append(ComparedRun(run.name(), run.plan(), actions.view(run)))

    def changed(self, pieces: dict[str, str]) -> dict[str, str]:
        """Those pieces of HTML that differ from what the tab shows."""
        new = {
            name: piece for name, piece in pieces.items() if self.shown_pieces.get(name) != piece
        }
        self.shown_pieces |= new
        return new


def open_run(actions: Actions, run: RunFolder) -> LiveRun:
    """Start watching, with everything that has happened so far."""
    actions.view(run)
    live = LiveRun(run, run.plan(), origin=run.origin())
    live.advance(actions)
    return live


def log_tail(actions: Actions, run: RunFolder) -> str:
    """The end of worker.log, without the server's folders."""
    run = actions.run(run.id)
    try:
        with run.log_file.open("rb") as file:
            file.seek(max(0, run.log_file.stat().st_size - _LOG_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return without_folders(tail.replace(str(actions.settings.home), "…"))
