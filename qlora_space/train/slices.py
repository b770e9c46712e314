"""A run in slices of time on a GPU that is lent for each: every slice goes on from the newest checkpoint, exactly.

Nothing outlives a slice but the files of the run folder, and what the process keeps in memory, should the next one
come to it too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from qlora_space.core.events import Cancelled, Event, Finished, Paused, Phase
from qlora_space.core.interruption import Interrupted, Interruption, Why
from qlora_space.data import prepare
from qlora_space.hub import fetch_base
from qlora_space.model import explains_out_of_memory
from qlora_space.runs import RunFolder, view_of
from qlora_space.train.context import Emit, RunContext
from qlora_space.train.recovery import release_memory
from qlora_space.train.run import TrainingRun


@dataclass(frozen=True)
class SliceEnd:
    """When a slice must have saved: at Unix time `at`, or when `is_wanted` says so."""

    at: float
    is_wanted: Callable[[], bool] = lambda: False

    def why(self) -> Why | None:
        if time.time() >= self.at:
            return "deadline"
        return "signal" if self.is_wanted() else None


def prepare_for_slices(
    run: RunFolder, emit: Emit, token: str | None, interruption: Interruption
) -> None:
    """What needs no GPU: the base's files, and the data as packed tokens. Raises QloraSpaceError, Interrupted."""
    plan = run.plan()
    fetch_base(plan.base, token)
    interruption.check()
    shared = run.home.prepared_folder(run.owner)

    def report(done: int, total: int) -> None:
        emit(Phase(name="data", done=done, total=total))

    prepare(plan, run.data_folder, report, token, shared=shared)


class SliceTrainer:
    """Of a process that slice after slice comes to: it keeps the last run in memory.

    A base is loaded once for as many slices as find it here. What is kept differs from a fresh start in nothing that
    is trained: `train` goes back to the checkpoint either way.
    """

    def __init__(self) -> None:
        self._kept: TrainingRun | None = None
        self._emit: Emit = lambda _: None
        self._heartbeat: Callable[[], None] = lambda: None
        self._end = SliceEnd(0.0)

    def train(
        self, run: RunFolder, emit: Emit, end: SliceEnd, heartbeat: Callable[[], None]
    ) -> Finished | Cancelled | Paused:
        """One slice. Paused: everything is saved, and there is more to do. Raises QloraSpaceError."""
        self._emit, self._heartbeat, self._end = _without_repeats(run, emit), heartbeat, end
        training = self._kept if self._kept and self._kept.run == run else None
        is_new = training is None
        if training is None:
            self.forget()
            training = TrainingRun(self._context(run), token=None)
        try:
            with explains_out_of_memory("Training"):
                ending = training.execute() if is_new else training.train_on()
        except Interrupted as interrupted:
            self._kept = training if training.is_loaded else None
            return Paused(step=training.step, why=interrupted.why)
        except BaseException:
            self.forget()
            raise
        self.forget()
        return ending

    def forget(self) -> None:
        """Give the memory back."""
        self._kept = None
        release_memory()

    def _context(self, run: RunFolder) -> RunContext:
        """Lives as long as the run is kept: slices differ in where events go, and in when they end."""
        interruption = Interruption(lambda: self._end.why())
        return RunContext(
            run, run.plan(), lambda e: self._emit(e), interruption, lambda: self._heartbeat()
        )


def _without_repeats(run: RunFolder, emit: Emit) -> Emit:
    """Every fresh start notes what was loaded, in the same words: the log has them once."""
    known = {note.text for note in view_of(run).notes}

    def emit_new(event: Event) -> object:
        return None if event.kind == "note" and event.text in known else emit(event)

    return emit_new
