"""The steps of a run: transformers' loop in segments, each going on from a snapshot.

A segment ends at the last step, at a stop, at a signal, with a rollback, or out of memory; after the last
two the next one starts from the last good snapshot. All state is in the snapshot, so a killed process, a
rolled back step and a smaller batch are the same thing.

A GPU does not wait for what is done between two steps: the first portion of the next step is queued, then the
step before is read and told, and what is due after it is done. Its optimizer has not stepped again by then, so
weights and optimizer are those of the step that is told; what was computed for the next one is dropped if need be.
"""

import math
import time
from typing import Any, Literal, Protocol

from transformers import TrainerCallback

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Metric, Note, Rollback
from qlora_space.core.interruption import Interrupted, Interruption
from qlora_space.model import is_out_of_memory
from qlora_space.plan import Plan
from qlora_space.train import guards
from qlora_space.train import oom as ladder
from qlora_space.train.memory import memory_now_gib, memory_peak_gib
from qlora_space.train.snapshot import (
    Progress,
    Rng,
    Snapshot,
    capture,
    halve_learning_rate,
    restore,
    restore_adapter,
)
from qlora_space.train.throughput import Pace
from qlora_space.train.trainer import RunTrainer
from qlora_space.train.update import Update

Ending = Literal["done", "stopped", "early"]
# Steps that take longer are waited for: the few ms between them do not matter, and who ends a run would wait for one
# portion more.
_SHORT_SECONDS = 5.0


class Host(Protocol):
    """What the loop asks of the story around it."""

    def emit(self, event: Any, /) -> object: ...
    def stop_is_asked(self) -> bool: ...
    def wants_checkpoint(self, step: int) -> bool: ...
    def check_space(self) -> None: ...
    def save(self, snapshot: Snapshot, began_at: float) -> None: ...
    def look(self, progress: Progress) -> Progress: ...
    def heartbeat(self) -> None: ...


class _RollBack(Exception):
    """Training is unsound; the text says what was seen."""


class _NothingLeft(Exception):
    """The segment is to end here."""


def tells_late(trainer: RunTrainer, plan: Plan) -> bool:
    """Whether a step is told when the next one has begun: where there is somebody else who computes."""
    return trainer.fast_step is not None and plan.hardware.device == "cuda"


class Loop(TrainerCallback):
    """Drives a RunTrainer. `progress` is what has been reached, also after an interruption."""

    def __init__(
        self, trainer: RunTrainer, plan: Plan, host: Host, interruption: Interruption
    ) -> None:
        self.trainer, self.plan, self.host = trainer, plan, host
        self.interruption = interruption
        self.progress = Progress(micro_batch=plan.per_device_train_batch_size)
        self.ending: Ending = "done"
        self._good: Snapshot | None = None  # what a rollback goes to
        self._step_began_with = Rng.now()
        self._is_inside = self._is_ready = self._is_rehearsed = self._went_back = False
        self._pace = Pace()
        self._untold: Update | None = None
        self._tells_late = tells_late(trainer, plan)
        trainer.between_micro_steps = self._between_micro_steps
        trainer.while_computing = self._tell_last_update
        trainer.add_callback(self)

    def run(self, start: Snapshot | None) -> None:
        """All steps that are left. Raises Interrupted (everything is saved), QloraSpaceError."""
        self._good = start
        if start:
            self.progress = start.progress
        with self.interruption.held():
            try:
                while self._segment():
                    pass
            finally:
                self._keep_untold(None)

    def _segment(self) -> bool:
        """True if another one must follow."""
        self._keep_untold(None)
        if self.host.stop_is_asked():
            self.ending = "stopped"
            if self._went_back and self._good:  # the weights are still those of the broken step
                restore_adapter(self.trainer.model, self._good.adapter)
            return False
        self.trainer.set_segment(self.progress.step, self.progress.micro_batch)
        self._is_inside = self._is_ready = False
        try:
            if self.progress.step < self.trainer.total_steps:
                self.trainer.train()
                self._tell_last_update()
            else:
                self._look()  # if a signal came before the last look
            return False
        except _NothingLeft:
            return False
        except Interrupted:
            self._save_before_leaving()
            raise
        except _RollBack as unsound:
            why = str(unsound)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = ""
        # Outside of `except`, so that nothing holds the tensors of the broken step any more.
        if why:
            self._roll_back(why)
        else:
            self._step_down()
        return True

    def _roll_back(self, why: str) -> None:
        failed_at, done = self.progress.step, self.progress.rollbacks
        rate = self.plan.learning_rate / 2**done
        if done >= guards.MOST_ROLLBACKS:
            raise ModelError(
                f"Training broke down at step {failed_at + 1} a third time: {why}. "
                f"The learning rate was {rate:.2g} then, after it was halved twice.",
                "Look at the rows for broken ones, or start again with a much lower learning rate.",
            )
        self._go_back(rollbacks=done + 1)
        event = Rollback(
            step=failed_at + 1, to_step=self.progress.step, why=why, learning_rate=rate / 2
        )
        self.host.emit(event)

    def _step_down(self) -> None:
        before = self.progress.micro_batch
        after = ladder.next_rung(self.plan, before, self.trainer.longest_row)
        self._is_rehearsed = False
        self._go_back(micro_batch=after)
        ladder.release_memory()
        text = (
            f"Memory ran out with {before} rows at once; going on from step {self.progress.step} "
            f"with {after}, and as many rows an update as before."
        )
        self.host.emit(Note(level="warning", text=text))

    def _go_back(self, **changed: int) -> None:
        """To the last good snapshot; what `changed` says outlives it."""
        kept = {"rollbacks": self.progress.rollbacks, "micro_batch": self.progress.micro_batch}
        reached = self._good.progress if self._good else self.progress
        self.progress = reached.model_copy(update=kept | changed)
        self._went_back = True

    # What transformers and the trainer call, in this order.

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self._good is None:
            self._good = self._capture()
        if not self._is_rehearsed:
            self._rehearse()
        restore(self.trainer, self._good)
        for _ in range(self.progress.rollbacks - self._good.progress.rollbacks):
            halve_learning_rate(self.trainer)
        self._is_ready = True
        if self._went_back:  # a kill from here on must not lead to the time before
            self._went_back = False
            self._save()
        self._after_step()
        self._pace.begin(self.progress.tokens_seen)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._step_began_with = Rng.now()
        self._is_inside = True
        self.trainer.begin_update()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._is_inside = False
        self._keep_untold(self.trainer.end_update())
        if not (self._tells_late and self._pace.seconds < _SHORT_SECONDS):
            self._tell_last_update()

    def _keep_untold(self, update: Update | None) -> None:
        """While there is one, progress is a step behind the weights: no moment for an interruption."""
        self._untold, self.interruption.is_postponed = update, update is not None

    def _tell_last_update(self) -> None:
        """If there is one that is not told: is it sound, then everything that is due after it."""
        update = self._untold
        if update is None:
            return
        self._keep_untold(None)
        self.trainer.settle()
        loss, norm = update.read()
        seen, why = guards.look(
            self.progress.guards,
            loss,
            norm,
            step_was_skipped=self.trainer.accelerator.optimizer_step_was_skipped,
        )
        if why:
            raise _RollBack(why)
        seconds = self._pace.end(update.tokens_seen)
        self.progress = self.progress.model_copy(
            update={
                "step": self.progress.step + 1,
                "tokens_seen": update.tokens_seen,
                "trained_tokens": update.trained_tokens,
                "train_seconds": self.progress.train_seconds + seconds,
                "guards": seen,
            }
        )
        self._tell(loss, norm, update.learning_rate)
        told_at, self.trainer.idle_since = time.monotonic(), None
        self._after_step()
        idle_since = self.trainer.idle_since
        if not self._is_inside:
            self._pace.begin(update.tokens_seen)
        elif idle_since is not None:  # a look or a save, after what was under way of the next step
            self._pace.begin(update.tokens_seen, spent_seconds=idle_since - told_at)

    def _tell(self, loss: float, norm: float, rate: float) -> None:
        device, step = self.plan.hardware.device, self.progress.step
        values = {
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "epoch": step * ladder.rows_per_step(self.plan) / self.trainer.num_rows,
            "tokens_per_second": self._pace.tokens_per_second,
            "memory_gib": memory_now_gib(device),
            "peak_gib": memory_peak_gib(device),
        }
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.host.emit(Metric(step=step, total_steps=self.trainer.total_steps, values=finite))

    def _rehearse(self) -> None:
        """Longest rows, and room for a save, before the first step: what cannot work fails now."""
        self.trainer.rehearse()
        self.host.check_space()
        self._is_rehearsed = True

    def _after_step(self) -> None:
        """What is due between two steps: evaluation, checkpoint, an end. Nothing here is trained on.

        Raises Interrupted, _RollBack, and _NothingLeft at a stop.
        """
        self.interruption.check()
        best_before = self.progress.best_step
        if self.host.stop_is_asked():
            self.ending = "stopped"
        else:
            self._look()
        step, best = self.progress.step, self.progress.best_step
        if (best == step and best != best_before) or self.host.wants_checkpoint(step):
            self._save()
        if self.ending == "done" and self.progress.has_stalled(self.plan.early_stopping_patience):
            self.ending = "early"
        if self.ending != "done":  # the last step is known to transformers
            raise _NothingLeft

    def _look(self) -> None:
        """Raises _RollBack, ModelError if the held-out loss is not finite."""
        looked = self.host.look(self.progress)
        loss = looked.eval_losses.get(looked.step, 0.0)
        if math.isfinite(loss):
            self.progress = looked
        elif looked.step:
            raise _RollBack(f"the held-out loss is {loss}")
        else:
            raise ModelError(
                f"The loss of the base on the held-out rows is {loss}, before any training.",
                "Choose another base, or other rows to hold out.",
            )

    def _save(self) -> None:
        """A checkpoint of now; a rollback goes to it if nothing points to trouble."""
        self.trainer.wait()  # for what is queued: no part of what a checkpoint costs
        began_at = time.monotonic()
        snapshot = self._capture()
        if self.progress.guards.is_calm:
            self._good = snapshot
        self.host.save(snapshot, began_at)

    def _capture(self) -> Snapshot:
        """Raises _RollBack if the weights are not finite: such a state is never gone back to."""
        snapshot = capture(self.trainer, self.progress, self._rng())
        if not snapshot.has_only_finite_weights():
            raise _RollBack("the adapter has weights that are not finite")
        return snapshot

    def _rng(self) -> Rng:
        """A step that has begun begins again as it did."""
        return self._step_began_with if self._is_inside else Rng.now()

    def _save_before_leaving(self) -> None:
        """Also from inside a step: its gradients are dropped, and it begins again as it began."""
        began_at, snapshot = time.monotonic(), self._good
        if self._is_ready:
            snapshot = capture(self.trainer, self.progress, self._rng())
        if snapshot:
            self.host.save(snapshot, began_at)

    def _between_micro_steps(self) -> None:
        self.host.heartbeat()
        self.interruption.check()
