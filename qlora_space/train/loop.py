"""The optimizer steps of a run, from top to bottom.

On a GPU, metrics of step N are read after step N+1's first micro-batch is launched, so the GPU never idles. Weights and
optimizer are still those of step N then, so its evaluation, checkpoint or end happens at that point; the gradients of
step N+1 are dropped if training does not go on with it.
"""

import time

from qlora_space.train import guards
from qlora_space.train.batches import MicroBatches, TrainingRows, num_trained, rows_per_step
from qlora_space.train.checkpointing import Checkpointer
from qlora_space.train.context import RunContext
from qlora_space.train.evaluate import Evaluator
from qlora_space.train.metrics import StepResult, Throughput, step_metric
from qlora_space.train.recovery import Ending, Recovery
from qlora_space.train.snapshot import Rng, Snapshot, TrainState
from qlora_space.train.step import Step


class Loop:
    """`state.progress` is what has been reached, also after an interruption."""

    def __init__(
        self,
        context: RunContext,
        state: TrainState,
        step: Step,
        rows: TrainingRows,
        evaluator: Evaluator,
        checkpointer: Checkpointer,
    ) -> None:
        self.context, self.state, self.step, self.rows = context, state, step, rows
        self.evaluator, self.checkpointer = evaluator, checkpointer
        self.recovery = Recovery(context, state, step, rows, checkpointer)
        self.throughput = Throughput()
        self.epochs_per_step = rows_per_step(context.plan) / len(rows)

    def run(self, start: Snapshot | None) -> Ending:
        """All steps that are left. Raises Interrupted (everything is saved), QloraSpaceError."""
        self.recovery.begin(start)
        with self.context.interruption.held():
            while (ending := self.recovery.attempt(self._train)) is None:
                pass
        return ending

    def _train(self) -> Ending:
        """From the last good snapshot to the end. Raises Unsound, Interrupted, torch.OutOfMemoryError."""
        state, plan, self.pending = self.state, self.context.plan, None
        if self._is_stopped():
            self.recovery.restore_weights()
            return "stopped"
        if state.progress.step >= state.total_steps:  # interrupted before the last evaluation
            self.evaluator.evaluate_if_due()
            return "done"
        self.recovery.restore()
        if ending := self._after_step():
            return ending
        rows_at_once = state.progress.micro_batch * self.step.num_processes
        micro_batches = MicroBatches(self.rows, plan, state.progress.step, rows_at_once)
        tokens_seen, trained_tokens = state.progress.tokens_seen, state.progress.trained_tokens
        self.throughput.start_step(tokens_seen)
        for _ in range(state.progress.step, state.total_steps):
            batches = micro_batches.next_step()
            num_items = sum(map(num_trained, batches))
            state.step_rng, loss = Rng.now(), None
            for batch in batches:
                self.context.check_in()
                part = self.step.add_gradients(batch, num_items, len(batches))
                loss = part if loss is None else loss + part
                if ending := self._finish_step():  # the one before, if it was deferred
                    return ending
                micro_batches.prefetch()
            loss = self.step.finish(loss)  # type: ignore[arg-type]
            norm = state.clip_gradients(plan.max_grad_norm)
            learning_rate = state.optimizer_step()
            tokens_seen += sum(batch.inputs["input_ids"].numel() for batch in batches)
            trained_tokens += num_items
            self.pending = StepResult.of(loss, norm, learning_rate, tokens_seen, trained_tokens)
            # Progress is a step behind the weights until it is finished: no moment for an interruption.
            self.context.interruption.is_postponed = True
            is_deferred = self.step.defers_metrics and self.throughput.has_short_steps
            if not is_deferred and (ending := self._finish_step()):
                return ending
        return self._finish_step() or "done"

    def _finish_step(self) -> Ending | None:
        """Check and report the pending step, then do what is due after it. Raises Unsound, Interrupted."""
        result, state, self.pending = self.pending, self.state, None
        if result is None:
            return None
        self.context.interruption.is_postponed = False
        self.step.synchronize()
        loss, norm = result.read()
        skipped = state.accelerator.optimizer_step_was_skipped
        sound = guards.check(state.progress.guards, loss, norm, step_was_skipped=skipped)
        seconds = self.throughput.end_step(result.tokens_seen)
        state.progress = state.progress.after_step(seconds, guards=sound, **result.token_counts)
        self.context.emit(step_metric(state, result, self.throughput, self.epochs_per_step))
        reported_at, state.idle_since = time.monotonic(), None
        ending = self._after_step()
        if state.step_rng is None:
            self.throughput.start_step(result.tokens_seen)
        elif state.idle_since is not None:  # the next step waited for an evaluation or a checkpoint
            self.throughput.start_step(result.tokens_seen, state.idle_since - reported_at)
        return ending

    def _after_step(self) -> Ending | None:
        """Evaluation, checkpoint, an end: nothing here is trained on. Raises Unsound, Interrupted."""
        self.context.interruption.check()
        best_before = self.state.progress.best_step
        is_stopped = self._is_stopped()
        if not is_stopped:
            self.evaluator.evaluate_if_due()
        step, best = self.state.progress.step, self.state.progress.best_step
        if (best == step and best != best_before) or self.checkpointer.is_due(step):
            self.recovery.save()
        if is_stopped:
            return "stopped"
        has_stalled = self.state.progress.has_stalled(self.context.plan.early_stopping_patience)
        return "early" if has_stalled else None

    def _is_stopped(self) -> bool:
        """After the last step there is nothing left to stop: such a run is evaluated and keeps its best adapter."""
        request, progress = self.context.run.stop_request(), self.state.progress
        return request == "discard" or (
            request == "keep" and progress.step < self.state.total_steps
        )
