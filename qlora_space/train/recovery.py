"""What a training does when a step breaks or the process must end.

Unsound: back to the last good snapshot with half the learning rate. Out of memory: back to it with a smaller
micro-batch and as many rows per step. Interrupted: everything is saved first. All state is in the snapshot, so a killed
process, a rollback and a smaller micro-batch are the same thing.
"""

import gc
import time
from collections.abc import Callable
from typing import Literal

import torch

from qlora_space.core.errors import ModelError, OutOfMemory
from qlora_space.core.events import Rollback
from qlora_space.core.interruption import Interrupted
from qlora_space.model import is_out_of_memory
from qlora_space.plan import Plan
from qlora_space.train import guards
from qlora_space.train.batches import TrainingRows, num_trained
from qlora_space.train.checkpointing import Checkpointer
from qlora_space.train.context import RunContext
from qlora_space.train.guards import Unsound
from qlora_space.train.snapshot import (
    Snapshot,
    TrainState,
    capture,
    halve_learning_rate,
    restore,
    restore_adapter,
)
from qlora_space.train.step import Step

Ending = Literal["done", "stopped", "early"]


class Recovery:
    """Holds the snapshot that training goes back to."""

    def __init__(
        self,
        context: RunContext,
        state: TrainState,
        step: Step,
        rows: TrainingRows,
        checkpointer: Checkpointer,
    ) -> None:
        self._context, self._state, self._step, self._rows = context, state, step, rows
        self._checkpointer = checkpointer
        self._good: Snapshot | None = None
        self._went_back = False  # and no checkpoint says so yet
        self._fits = False  # the micro-batch in memory, and checkpoints on the disk
        self._is_restored = False

    def begin(self, start: Snapshot | None) -> None:
        """Go on from a checkpoint, or from what the model is now."""
        self._good = start
        if start:
            self._state.progress = start.progress

    def attempt(self, train: Callable[[], Ending]) -> Ending | None:
        """How `train` ended; None if it broke and must go on from the last good snapshot.

        Raises Interrupted (everything is saved), ModelError after too many rollbacks, OutOfMemory for a single row.
        """
        self._is_restored, problem = False, ""
        try:
            return train()
        except Interrupted:
            self._save_before_leaving()
            raise
        except Unsound as unsound:
            problem = str(unsound)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self._context.interruption.is_postponed = False
        # Outside of `except`, so that nothing holds the tensors of the broken step any more.
        if problem:
            self._roll_back(problem)
        else:
            self._shrink_micro_batch()
        return None

    def restore(self) -> None:
        """Put the last good snapshot back, with the learning rate of the rollbacks since. What does not fit in memory
        or on the disk fails here, before it."""
        self._state.step_rng = None
        self._good = self._good or self._capture()
        if not self._fits:
            self._try_longest_rows()
            self._checkpointer.check_space()
            self._fits = True
        restore(self._state, self._good)
        for _ in range(self._state.progress.rollbacks - self._good.progress.rollbacks):
            halve_learning_rate(self._state)
        self._is_restored = True
        if self._went_back:  # a kill from here on must not lead to the time before
            self._went_back = False
            self.save()

    def restore_weights(self) -> None:
        """Of a run that is stopped right after it went back."""
        if self._went_back and self._good:
            restore_adapter(self._state.model, self._good.adapter)

    def save(self) -> None:
        """A checkpoint of now; training goes back to it unless it points to an explosion that has begun."""
        self._state.wait()  # for what is queued, which is no part of what a checkpoint costs
        started_at = time.monotonic()
        snapshot = self._capture()
        if self._state.progress.guards.is_calm:
            self._good = snapshot
        self._checkpointer.save(snapshot, started_at)

    def _capture(self) -> Snapshot:
        """Raises Unsound if the weights are not finite: such a state is never gone back to."""
        snapshot = capture(self._state)
        if not snapshot.has_only_finite_weights():
            raise Unsound("the adapter has weights that are not finite")
        return snapshot

    def _try_longest_rows(self) -> None:
        """An optimizer step on the longest rows, so that memory runs out now or never; `restore` undoes it."""
        state = self._state
        batch = self._rows.longest(state.progress.micro_batch * self._step.num_processes)
        state.optimizer.zero_grad()  # what a broken step left
        self._context.check_in()
        self._step.finish(self._step.add_gradients(batch, num_trained(batch), 1))
        state.optimizer.step()
        self._step.synchronize()
        state.optimizer.zero_grad()

    def _save_before_leaving(self) -> None:
        """Also from inside a step: its gradients are dropped, and it begins again as it began."""
        started_at = time.monotonic()
        snapshot = capture(self._state) if self._is_restored else self._good
        if snapshot:
            self._checkpointer.save(snapshot, started_at)

    def _roll_back(self, problem: str) -> None:
        progress = self._state.progress
        failed_at, done = progress.step + 1, progress.rollbacks
        rate = self._context.plan.learning_rate / 2**done
        if done >= guards.MAX_ROLLBACKS:
            raise ModelError(
                f"Training broke down at step {failed_at} a third time: {problem}. "
                f"The learning rate was {rate:.2g} then, after it was halved twice.",
                "Look at the rows for broken ones, or start again with a much lower learning rate.",
            )
        self._go_back(rollbacks=done + 1)
        to_step = self._state.progress.step
        event = Rollback(step=failed_at, to_step=to_step, why=problem, learning_rate=rate / 2)
        self._context.emit(event)

    def _shrink_micro_batch(self) -> None:
        before = self._state.progress.micro_batch
        after = smaller_micro_batch(self._context.plan, before, self._rows.longest_tokens)
        self._fits = False
        self._go_back(micro_batch=after)
        release_memory()
        self._context.note(
            f"Memory ran out with micro-batches of {before} rows; going on from step {self._state.progress.step} with "
            f"{after}, and as many rows per step as before.",
            "warning",
        )

    def _go_back(self, **changed: int) -> None:
        """To the last good snapshot; what `changed` says outlives it."""
        state, progress = self._state, self._state.progress
        kept = {"rollbacks": progress.rollbacks, "micro_batch": progress.micro_batch}
        reached = self._good.progress if self._good else progress
        state.progress = reached.model_copy(update=kept | changed)
        self._went_back = True


def smaller_micro_batch(plan: Plan, micro_batch: int, longest_row_tokens: int) -> int:
    """The next smaller micro-batch. Raises OutOfMemory if it is a single row already."""
    if micro_batch > 1:
        return micro_batch // 2
    shorter = max(64, longest_row_tokens // 2 // 64 * 64)
    fewer = {16: 8, 8: 4}.get(plan.bits)
    others = [f"--bits {fewer}"] if fewer else []
    others += [] if plan.gradient_checkpointing else ["--gradient-checkpointing"]
    more = f", {' or '.join(others)}" if others else ", or a smaller base"
    raise OutOfMemory(
        f"One row of {longest_row_tokens:,} tokens needs more memory than there is, with one row at a time.",
        f"Use max_length {shorter:,}{more}.",
    )


def release_memory() -> None:
    """Give back what the broken step held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
