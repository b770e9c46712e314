"""What happens beside the steps: looks at held-out rows, checkpoints, and the wishes left in the run folder."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qlora_space.core.atomic import disk_full, missing_bytes
from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.core.events import Event, Metric, Note, Phase, Sample
from qlora_space.generate import answer_batch
from qlora_space.plan import Plan
from qlora_space.plan.eval_cost import SAMPLE_TOKENS
from qlora_space.runs import RunFolder
from qlora_space.train.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    save_whole,
)
from qlora_space.train.evaluate import HeldOut
from qlora_space.train.snapshot import (
    Progress,
    Snapshot,
    adapter_weights,
    num_bytes,
    snapshot_bytes,
    untouched_rng,
)
from qlora_space.train.trainer import RunTrainer

_DISK_PATIENCE_SECONDS = 600.0
_DISK_LOOK_SECONDS = 2.0
_MOST_COST = 0.008  # share of the time that goes into checkpoints: below 1 %, also if the next takes a bit longer
_SAVE_AGAIN_SECONDS = 10.0  # after one that failed


class Watch:
    """The loop's Host. Nothing here changes what is trained."""

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        emit: Callable[[Event], object],
        heartbeat: Callable[[], None],
        trainer: RunTrainer,
        tokenizer: PreTrainedTokenizerBase,
        held: HeldOut,
    ) -> None:
        self.run, self.plan, self.emit, self.heartbeat = run, plan, emit, heartbeat
        self.trainer, self.tokenizer, self.held = trainer, tokenizer, held
        self._save_at = time.monotonic() + plan.save_seconds
        self._is_failing = False
        self.saved_step = -1  # of the newest checkpoint

    # Wishes

    def stop_is_asked(self) -> bool:
        return self.run.stop_request() is not None

    def wants_checkpoint(self, step: int) -> bool:
        """At the ends, by steps, by time, or because somebody pressed "Save now" or "Stop"."""
        if step == self.saved_step:
            return False
        is_due = bool(self.plan.save_steps) and step % self.plan.save_steps == 0
        is_late = time.monotonic() >= self._save_at
        at_end = step in (0, self.trainer.total_steps)
        keeps = self.run.stop_request() == "keep"
        return self._asked("save") or is_due or is_late or at_end or keeps

    def _asked(self, name: str) -> bool:
        """Take a file that the page left in the run folder."""
        try:
            (self.run.path / name).unlink()
        except FileNotFoundError:
            return False
        return True

    # Checkpoints

    def check_space(self) -> None:
        """Two checkpoints and the adapter must fit before anything is trained. Raises DiskFull.

        One that is there makes room for another when it goes, but for that of step 0, which has no optimizer states.
        """
        count = 1 if self.saved_step > 0 else 2
        adapter = num_bytes(adapter_weights(self.trainer.model))
        needed = snapshot_bytes(self.trainer) * count + adapter
        if (missing := missing_bytes(self.run.path, needed)) > 0:
            raise disk_full("This run", missing)

    def save(self, snapshot: Snapshot, began_at: float) -> None:
        """A checkpoint, if there is room for it; else a note, and a new try soon. Training goes on.

        `began_at` (monotonic seconds) is before the snapshot was taken: the next one by time comes when this
        one is less than a hundredth of it. Raises DiskFull for the first one, when nothing is lost yet.
        """
        model = self.trainer.model
        try:
            event = save_checkpoint(model, snapshot, self.run.checkpoints_folder)  # type: ignore[arg-type]
        except (DiskFull, ModelError) as error:
            if self.saved_step < 0:
                raise
            self._save_at = time.monotonic() + _SAVE_AGAIN_SECONDS
            if not self._is_failing:
                text = f"No checkpoint was written after step {snapshot.progress.step}. {error}"
                self.emit(Note(level="warning", text=text))
            self._is_failing = True
            return
        if self._is_failing:
            self.emit(Note(level="info", text="Checkpoints are written again."))
        self._is_failing = False
        now = time.monotonic()
        cost = now - began_at
        if not snapshot.optimizer:  # the next one has its states too
            cost *= snapshot_bytes(self.trainer) / snapshot.num_bytes
        self._save_at = now + max(self.plan.save_seconds, cost / _MOST_COST)
        self.saved_step = snapshot.progress.step
        self.emit(event.model_copy(update={"seconds": round(now - began_at, 4)}))

    def checkpoint(self, step: int) -> Snapshot | None:
        """That of the best step; None, with a note, if it is not there whole."""
        try:
            return load_checkpoint(self.run.checkpoints_folder / f"step-{step:06d}")
        except ModelError as error:
            text = f"The best checkpoint, step {step}, is not used: {error.what}. The last adapter is kept."
            self.emit(Note(level="warning", text=text))
            return None

    def save_adapter(self, model: PeftModel, add_files: Callable[[Path], None]) -> int:
        """Waits for room on the disk, as long as nobody stops the run. Raises DiskFull after 10 minutes."""
        started, total = time.monotonic(), int(_DISK_PATIENCE_SECONDS)
        told = ""
        while True:
            try:
                return save_whole(model, self.run.adapter_folder, add_files)
            except DiskFull as error:
                waited = int(time.monotonic() - started)
                if waited > total or self.run.stop_request() is not None:
                    raise
                if str(error) != told:
                    told = str(error)
                    self.emit(Note(level="warning", text=told))
            self.emit(Phase(name="disk", done=waited, total=total))
            time.sleep(_DISK_LOOK_SECONDS)

    # Looks

    def look(self, progress: Progress) -> Progress:
        """Held-out loss and a few answers where they are due; returns progress with the loss in it."""
        if self.held.rows is None:
            return progress
        step, total = progress.step, self.trainer.total_steps
        is_due = step % self.plan.eval_steps == 0 or step == total
        if is_due and step not in progress.eval_losses:
            with untouched_rng():
                loss = self._measure(step, total)
                self._ask(step)
            return _with_loss(progress, loss)
        if self._asked("sample"):
            with untouched_rng():
                self._ask(step)
        return progress

    def _measure(self, step: int, total: int) -> float:
        self.trainer.wait()
        self.emit(Phase(name="evaluate", done=0, total=1))
        loss = self.trainer.mean_loss(self.held.rows)  # type: ignore[arg-type]
        if math.isfinite(loss):
            self.emit(Metric(step=step, total_steps=total, values={"eval_loss": loss}))
        self.emit(Phase(name="train", done=step, total=total))
        return loss

    def between_tokens(self) -> None:
        """A base that is read over the bus takes seconds a token, and silence would mean that it hangs."""
        if self.plan.cpu_offload:
            self.heartbeat()

    def _ask(self, step: int) -> None:
        held, count = self.held, min(self.plan.num_samples, len(self.held.prompts))
        if not count:
            return
        limit = min(held.max_new_tokens, SAMPLE_TOKENS)
        self.trainer.wait()
        model, prompts = self.trainer.model, held.prompts[:count]
        with self.trainer.precision():
            texts = answer_batch(
                model,  # type: ignore[arg-type]
                self.tokenizer,
                prompts,
                limit,
                held.stop_token_ids,
                self.between_tokens,
            )
        for question, expected, text in zip(held.questions, held.expected, texts, strict=False):
            self.emit(Sample(step=step, prompt=question, expected=expected, text=text))


def _with_loss(progress: Progress, loss: float) -> Progress:
    """Step 0 is the base itself: never the best."""
    losses = progress.eval_losses | {progress.step: loss}
    trained = {step: value for step, value in losses.items() if step}
    best = min(trained, key=trained.__getitem__, default=None)
    return progress.model_copy(update={"eval_losses": losses, "best_step": best})
