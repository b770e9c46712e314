"""The steps of a run: transformers' loop in segments, each going on from a snapshot.

A segment ends at the last step, at a stop, at a signal, with a rollback, or out of memory; after the last
two the next one starts from the newest snapshot. All state is in the snapshot, so a killed process, a
rolled back step and a smaller batch are the same thing.
"""

import time
from typing import Any, Literal, Protocol

from transformers import TrainerCallback

from qlora_space.errors import ModelError
from qlora_space.events import Metric, Note, Rollback
from qlora_space.interruption import Interrupted, Interruption
from qlora_space.plan import Plan
from qlora_space.train import guards, ladder
from qlora_space.train.memory import memory_now_gib, memory_peak_gib
from qlora_space.train.snapshot import (
    Progress,
    Rng,
    Snapshot,
    capture,
    halve_learning_rate,
    restore,
)
from qlora_space.train.trainer import RunTrainer

Ending = Literal["done", "stopped", "early"]
_SNAPSHOT_STEPS = 50


class Host(Protocol):
    """What the loop asks of the story around it."""

    def emit(self, event: Any, /) -> object: ...
    def stop_is_asked(self) -> bool: ...
    def wants_checkpoint(self, step: int) -> bool: ...
    def save(self, snapshot: Snapshot) -> None: ...
    def look(self, progress: Progress) -> Progress: ...
    def pulse(self) -> None: ...


class _RollBack(Exception):
    """Training is unsound; the text says what was seen."""


class Loop(TrainerCallback):
    """Drives a RunTrainer. `progress` is what has been reached, also after an interruption."""

    def __init__(
        self, trainer: RunTrainer, plan: Plan, host: Host, interruption: Interruption
    ) -> None:
        self.trainer, self.plan, self.host = trainer, plan, host
        self.interruption = interruption
        self.progress = Progress(micro_batch=plan.per_device_train_batch_size)
        self.ending: Ending = "done"
        self._snapshot: Snapshot | None = None
        self._step_began_with = Rng.now()
        self._is_inside = self._is_ready = self._is_rehearsed = False
        self._last = (time.monotonic(), 0)
        trainer.between_micro_steps = self._between_micro_steps
        trainer.add_callback(self)

    def run(self, start: Snapshot | None) -> None:
        """All steps that are left. Raises Interrupted (everything is saved), QloraSpaceError."""
        self._snapshot = start
        if start:
            self.progress = start.progress
        with self.interruption.held():
            while self._segment():
                pass

    def _segment(self) -> bool:
        """True if another one must follow."""
        if self.progress.step >= self.trainer.total_steps:
            self.progress = self.host.look(
                self.progress
            )  # a signal may have come before the last one
            return False
        if self.host.stop_is_asked():
            self.ending = "stopped"
            return False
        self.trainer.set_segment(self.progress.step, self.progress.micro_batch)
        self.ending = "done"
        self._is_inside = self._is_ready = False
        try:
            self.trainer.train()
            return False
        except Interrupted:
            self._save_before_leaving()
            raise
        except _RollBack as unsound:
            why = str(unsound)
        except (MemoryError, RuntimeError) as error:
            if not ladder.is_out_of_memory(error):
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
        rate = self._peak_rate()
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
        self._go_back(micro_batch=after)
        ladder.release_memory()
        text = (
            f"Memory ran out with {before} rows at once; going on from step {self.progress.step} "
            f"with {after}, and as many rows an update as before."
        )
        self.host.emit(Note(level="warning", text=text))

    def _go_back(self, **changed: int) -> None:
        """To the newest snapshot; what `changed` says outlives it."""
        kept = {"rollbacks": self.progress.rollbacks, "micro_batch": self.progress.micro_batch}
        reached = self._snapshot.progress if self._snapshot else self.progress
        self.progress = reached.model_copy(update=kept | changed)

    def _peak_rate(self) -> float:
        return self.trainer.lr_scheduler.base_lrs[0]

    # What transformers calls, in this order.

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self._snapshot is None:
            self._snapshot = capture(self.trainer, self.progress)
        if not self._is_rehearsed:
            self._is_rehearsed = True
            self._rehearse()
        restore(self.trainer, self._snapshot)
        for _ in range(self.progress.rollbacks - self._snapshot.progress.rollbacks):
            halve_learning_rate(self.trainer)
        self._is_ready = True
        self._keep_snapshot()
        self._last = (time.monotonic(), self.progress.tokens_seen)
        self._after_step(control)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._step_began_with = Rng.now()
        self._is_inside = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not logs or "loss" not in logs:
            return
        self._is_inside = False
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        seen, why = guards.look(
            self.progress.guards,
            loss,
            norm,
            step_was_skipped=self.trainer.accelerator.optimizer_step_was_skipped,
        )
        if why:
            raise _RollBack(why)
        now, (then, tokens_then) = time.monotonic(), self._last
        tokens = self.trainer.tokens_seen
        self.progress = self.progress.model_copy(
            update={
                "step": self.trainer.first_step + state.global_step,
                "tokens_seen": tokens,
                "trained_tokens": self.trainer.trained_tokens,
                "train_seconds": self.progress.train_seconds + now - then,
                "guards": seen,
            }
        )
        values = {
            "loss": loss,
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": norm,
            "epoch": self._epoch(),
            "tokens_per_second": (tokens - tokens_then) / max(now - then, 1e-9),
        }
        device = self.plan.hardware.device
        values |= {"memory_gib": memory_now_gib(device), "peak_gib": memory_peak_gib(device)}
        step, total = self.progress.step, self.trainer.total_steps
        self.host.emit(Metric(step=step, total_steps=total, values=values))
        self._after_step(control)
        self._last = (time.monotonic(), self.trainer.tokens_seen)

    def _epoch(self) -> float:
        return self.progress.step * ladder.rows_per_step(self.plan) / self.trainer.num_rows

    def _rehearse(self) -> None:
        """Longest rows and one save, before the first step: what cannot work fails now."""
        self.trainer.rehearse()
        capture(self.trainer, self.progress)

    def _after_step(self, control: Any) -> None:
        """What is due between two steps: evaluation, checkpoint, snapshot, an end. Nothing here is trained on."""
        self.interruption.check()
        before = self.progress
        self.progress = self.host.look(before)
        step = self.progress.step
        is_best = self.progress.best_step == step and before.best_step != step
        if is_best or self.host.wants_checkpoint(step):
            self._keep_snapshot()
            self.host.save(self._snapshot)  # type: ignore[arg-type]
        elif self._snapshot and step - self._snapshot.progress.step >= _SNAPSHOT_STEPS:
            self._keep_snapshot()
        if self.host.stop_is_asked():
            self.ending = "stopped"
        elif self._has_stalled():
            self.ending = "early"
        if self.ending != "done":  # transformers itself says so at the last step
            control.should_training_stop = True

    def _has_stalled(self) -> bool:
        """No better held-out loss in the last `early_stopping_patience` evaluations."""
        patience, progress = self.plan.early_stopping_patience, self.progress
        if not patience or progress.best_step is None:
            return False
        return sum(step > progress.best_step for step in progress.eval_losses) >= patience

    def _keep_snapshot(self) -> None:
        """Raises _RollBack if the weights are not finite: such a state is never gone back to."""
        snapshot = capture(self.trainer, self.progress)
        if not snapshot.has_only_finite_weights():
            raise _RollBack("the adapter has weights that are not finite")
        self._snapshot = snapshot

    def _save_before_leaving(self) -> None:
        """Also from inside a step: its gradients are dropped, and it begins again as it began."""
        snapshot = self._snapshot
        if self._is_ready:
            rng = self._step_began_with if self._is_inside else None
            snapshot = capture(self.trainer, self.progress, rng)
        if snapshot:
            self.host.save(snapshot)

    def _between_micro_steps(self) -> None:
        self.host.pulse()
        self.interruption.check()
