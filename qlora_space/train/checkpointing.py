"""When a checkpoint is due, and what happens if the disk has no room for it."""

import time
from collections.abc import Callable
from pathlib import Path

from qlora_space.core.atomic import disk_full, missing_bytes
from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.train.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_whole,
)
from qlora_space.train.context import RunContext
from qlora_space.train.snapshot import (
    Snapshot,
    TrainState,
    adapter_weights,
    num_bytes,
    snapshot_bytes,
)

_DISK_PATIENCE_SECONDS = 600.0
_DISK_POLL_SECONDS = 2.0
_LARGEST_COST = 0.008  # share of the time spent on checkpoints: below 1 %, also if the next one takes a bit longer
_RETRY_SECONDS = 10.0  # after one that failed


class Checkpointer:
    """Writes the checkpoints and the adapter of a run. Nothing here changes what is trained."""

    def __init__(self, context: RunContext, state: TrainState) -> None:
        self._context, self._state, self._run = context, state, context.run
        self._save_at = time.monotonic() + context.plan.save_seconds
        self._is_failing = False
        self._saved_step = -1  # of the newest checkpoint

    def newest(self) -> Snapshot | None:
        """What to go on from. Reports which checkpoints were damaged, and what is used instead."""
        snapshot, skipped = newest_checkpoint(self._run.checkpoints_folder)
        for reason in skipped:
            self._context.note(f"A checkpoint was damaged and is not used. {reason}.", "warning")
        if snapshot:
            step = self._saved_step = snapshot.progress.step
            self._context.note(f"Going on after step {step}, from its checkpoint.")
        return snapshot

    def is_due(self, step: int) -> bool:
        """At the ends, by steps, by time, or because somebody pressed "Save now" or "Stop"."""
        if step == self._saved_step:
            return False
        plan = self._context.plan
        by_steps = bool(plan.save_steps) and step % plan.save_steps == 0
        by_time = time.monotonic() >= self._save_at
        at_end = step in (0, self._state.total_steps)
        stops = self._run.stop_request() == "keep"
        return self._context.take_request("save") or by_steps or by_time or at_end or stops

    def check_space(self) -> None:
        """Two checkpoints and the adapter must fit before anything is trained. Raises DiskFull.

        One that is there makes room for another when it goes, but for that of step 0, which has no optimizer states.
        """
        count = 1 if self._saved_step > 0 else 2
        adapter = num_bytes(adapter_weights(self._state.model))
        needed = snapshot_bytes(self._state) * count + adapter
        if (missing := missing_bytes(self._run.path, needed)) > 0:
            raise disk_full("This run", missing)

    def save(self, snapshot: Snapshot, started_at: float) -> None:
        """A checkpoint, if there is room for it; else a note, and a new try soon. Training goes on.

        `started_at` (monotonic seconds) is before the snapshot was taken: the next one by time is due when this one
        has cost less than a hundredth of the time since. Raises DiskFull for the first one, when nothing is lost yet.
        """
        try:
            event = save_checkpoint(self._state.model, snapshot, self._run.checkpoints_folder)
        except (DiskFull, ModelError) as error:
            if self._saved_step < 0:
                raise
            self._retry_later(snapshot.progress.step, error)
            return
        if self._is_failing:
            self._context.note("Checkpoints are written again.")
        self._is_failing = False
        now = time.monotonic()
        cost = now - started_at
        if not snapshot.optimizer:  # the next one has its states too
            cost *= snapshot_bytes(self._state) / snapshot.num_bytes
        self._save_at = now + max(self._context.plan.save_seconds, cost / _LARGEST_COST)
        self._saved_step = snapshot.progress.step
        self._context.emit(event.model_copy(update={"seconds": round(now - started_at, 4)}))

    def best(self, step: int) -> Snapshot | None:
        """The checkpoint of the best step; None, with a note, if it is not whole."""
        try:
            return load_checkpoint(self._run.checkpoint_folder(step))
        except ModelError as error:
            text = f"The best checkpoint, step {step}, is not used: {error.what}. The last adapter is kept."
            self._context.note(text, "warning")
            return None

    def save_adapter(self, add_files: Callable[[Path], None]) -> int:
        """Waits for room on the disk, as long as nobody stops the run; `add_files` adds to the folder.

        Returns the bytes written. Raises DiskFull after 10 minutes.
        """
        started_at, total = time.monotonic(), int(_DISK_PATIENCE_SECONDS)
        reported = ""
        while True:
            try:
                return save_whole(self._state.model, self._run.adapter_folder, add_files)
            except DiskFull as error:
                waited = int(time.monotonic() - started_at)
                if waited > total or self._run.stop_request() is not None:
                    raise
                if str(error) != reported:
                    reported = str(error)
                    self._context.note(reported, "warning")
            self._context.phase("disk", waited, total)
            time.sleep(_DISK_POLL_SECONDS)

    def _retry_later(self, step: int, error: DiskFull | ModelError) -> None:
        self._save_at = time.monotonic() + _RETRY_SECONDS
        if not self._is_failing:
            text = f"No checkpoint was written after step {step}. {error}"
            self._context.note(text, "warning")
        self._is_failing = True
