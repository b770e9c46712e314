"""A run that is followed: new events are read from an offset and folded in once."""

import time

from pydantic import ValidationError

from qlora_space.app.actions import Actions
from qlora_space.app.ui.pieces import Origin, Snapshot
from qlora_space.app.ui.render.run import Log
from qlora_space.core.errors import RunError
from qlora_space.plan import Plan
from qlora_space.runs import QueuePosition, RunFolder, RunView, fold, read_events, step_to_resume

_QUEUE_SECONDS = 2.0
_SILENT_SECONDS = 10.0


class EventsReplaced(Exception):
    """The file of events is another one, or shorter than what was read of it: to be read from its start."""


class FollowedRun:
    """One run, read by one thread."""

    def __init__(self, run: RunFolder, actions: Actions) -> None:
        """Reads nothing of the events yet. Raises RunError if the run is damaged or was deleted."""
        self.run, self._actions = run, actions
        try:
            self._plan = run.plan()
            self._origin_run = run.origin()
            self._origin = self._origin_run and Origin.of(self._origin_run)
        except (OSError, ValidationError):
            raise _deleted() from None
        self.view, self.log = RunView(), Log()
        self.num_events = 0  # lines of the file, damaged ones too
        self._offset = 0
        self._inode = 0
        self._queue_position: QueuePosition | None = None
        self._checked_at = 0.0

    def read(self) -> bool:
        """Whether there were new events. Raises RunError if the run was deleted, EventsReplaced."""
        try:
            stat = self.run.events_file.stat()
        except FileNotFoundError:
            raise _deleted() from None
        if stat.st_size < self._offset or (self._inode and stat.st_ino != self._inode):
            raise EventsReplaced
        self._inode = stat.st_ino
        if stat.st_size == self._offset:
            return False
        new, self._offset = read_events(self.run.events_file, self._offset)
        self.view = fold(new, self.view)
        for event in new:
            self.log.add(event)
        self.num_events = new[-1].seq + 1 if new else self.num_events
        return bool(new)

    def snapshot(self) -> Snapshot:
        """The run now. After a silence it is checked on: its worker may be dead."""
        now = time.time()
        self._check(now)
        origin_is_there = self._origin_run is not None and self._origin_run.path.exists()
        return Snapshot(
            run=self.run,
            name=_name(self.run, self._plan),
            plan=self._plan,
            view=self.view,
            now=now,
            queue_position=self._queue_position if self.view.status == "queued" else None,
            resume_step=step_to_resume(self.run, self.view),
            origin=self._origin if origin_is_there else None,
        )

    def _check(self, now: float) -> None:
        if self.view.status == "queued" and now - self._checked_at > _QUEUE_SECONDS:
            self._checked_at = now
            self._queue_position = self._actions.queue_positions().get(self.run.id)
        is_silent = now - max(self.view.last_at, self._checked_at) > _SILENT_SECONDS
        if is_silent and not self.view.is_over:
            self._checked_at = now
            self._actions.view(self.run)


def _name(run: RunFolder, plan: Plan) -> str:
    """Without reading the plan again for it."""
    return run.name() if (run.path / "name").is_file() else plan.name


def _deleted() -> RunError:
    return RunError("This run was deleted.", "Choose another one from the list of runs.")
