"""train(): from a run folder with a plan to a run folder with an adapter and a report."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from qlora_space.data import Prepared, chat_template_of, load_tokenizer, prepare
from qlora_space.events import Cancelled, Event, Finished, Metric, Note, Phase, Sample
from qlora_space.generate import answer_batch
from qlora_space.hub import copy_tokenizer, fetch_base
from qlora_space.model import explains_out_of_memory
from qlora_space.runs import RunFolder, write_atomically
from qlora_space.train.checkpoint import save_checkpoint, save_whole
from qlora_space.train.measure import held_out, score, shown_answers
from qlora_space.train.memory import memory_now_gib, memory_peak_gib
from qlora_space.train.report import make_report
from qlora_space.train.start import start_model
from qlora_space.train.trainer import RunTrainer, StepCallback

Emit = Callable[[Event], object]
_SAMPLE_TOKENS = 128


def train(run: RunFolder, emit: Emit, token: str | None) -> Finished | Cancelled:
    """Do the whole job; returns how it ended. Raises QloraSpaceError for what the user must change."""
    session = _Session(run, emit, token)
    with explains_out_of_memory("Training"):
        session.train()
        if run.stop_wish() == "discard":
            shutil.rmtree(run.checkpoints_folder, ignore_errors=True)
            return Cancelled(step=session.step)
        session.save()
        session.measure()
    return Finished(step=session.step, stopped_early=run.stop_wish() is not None)


class _Session:
    """Everything that is in memory while a run runs."""

    def __init__(self, run: RunFolder, emit: Emit, token: str | None) -> None:
        self.started = time.monotonic()
        self.run, self.emit, self.plan = run, emit, run.plan()
        self.base_folder = fetch_base(self.plan.base, token)
        self.tokenizer = load_tokenizer(self.base_folder)
        shared = run.path.parent.parent / "prepared"
        self.prepared = prepare(
            self.plan, run.data_folder, self._phase_of("data"), token, shared=shared
        )
        _tell_about_data(self.prepared, self.plan.num_eval_rows, emit)
        self.model = start_model(run, self.base_folder, self.prepared, self.tokenizer, emit)
        self.rows = Dataset.from_file(str(self.prepared.train_file))
        self.held = held_out(self.tokenizer, self.prepared, self.plan.base.source == "demo")
        self.trainer = RunTrainer(self.model, self.tokenizer, self.plan, self.rows, run.path)
        self.step = 0
        self.train_seconds = 0.0
        self.eval_losses: dict[int, float] = {}

    @property
    def total_steps(self) -> int:
        """As transformers.Trainer counts them."""
        if self.plan.max_steps > 0:
            return self.plan.max_steps
        batches = math.ceil(len(self.rows) / self.plan.per_device_train_batch_size)
        updates = max(1, math.ceil(batches / self.plan.gradient_accumulation_steps))
        return math.ceil(updates * self.plan.num_train_epochs)

    def train(self) -> None:
        """Look at the base once, then all steps; a stop is honoured between two of them."""
        should_stop = lambda: self.run.stop_wish() is not None  # noqa: E731
        StepCallback(self._on_step, should_stop).attach(self.trainer)
        self.emit(Phase(name="train", done=0, total=self.total_steps))
        self._look(self.total_steps)
        started = time.monotonic()
        self.trainer.train()
        self.train_seconds = time.monotonic() - started

    def save(self) -> None:
        """The adapter with the base's own tokenizer files. Nothing after this can lose it."""
        self.emit(Phase(name="save", done=0, total=1))
        num_bytes = save_whole(self.model, self.run.adapter_folder, self._add_tokenizer)
        self.emit(Note(level="info", text=f"Saved the adapter, {num_bytes / 2**20:.1f} MiB."))

    def measure(self) -> None:
        """Trained and base model on the same held-out rows, and the report of both."""
        with_answers = self.run.stop_wish() is None
        what = (self.trainer, self.model, self.tokenizer, self.held)
        self.emit(Phase(name="report", done=0, total=2))
        trained, adapted_answers = score(*what, with_adapter=True, with_answers=with_answers)
        if trained.heldout_loss is not None:
            self._tell_eval_loss(trained.heldout_loss, self.total_steps)
        self.emit(Phase(name="report", done=1, total=2))
        base, base_answers = score(*what, with_adapter=False, with_answers=with_answers)
        report = make_report(
            run=self.run,
            prepared=self.prepared,
            scores=(base, trained),
            answers=shown_answers(self.held, base_answers, adapted_answers),
            steps=self.step,
            tokens_seen=self.trainer.tokens_seen,
            trained_tokens=self.trainer.trained_tokens,
            train_seconds=self.train_seconds,
            total_seconds=time.monotonic() - self.started,
            best_step=min(self.eval_losses, key=self.eval_losses.__getitem__, default=None),
        )
        write_atomically(self.run.report_file, report.model_dump_json(indent=1))
        self.emit(Phase(name="report", done=2, total=2))

    def _on_step(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        device = self.plan.hardware.device
        self.step = step
        memory = {"memory_gib": memory_now_gib(device), "peak_gib": memory_peak_gib(device)}
        self.emit(Metric(step=step, total_steps=total_steps, values=values | memory))
        is_last = step >= total_steps
        if step % self.plan.save_steps == 0 and not is_last:
            self.emit(save_checkpoint(self.model, self.run.checkpoints_folder, step))
        if step % self.plan.eval_steps == 0 and not is_last:
            self._look(total_steps)

    def _look(self, total_steps: int) -> None:
        """Held-out loss and a few answers, for the person who watches."""
        if self.held.rows is None:
            return
        self.emit(Phase(name="evaluate", done=0, total=1))
        self._tell_eval_loss(self.trainer.mean_loss(self.held.rows), total_steps)
        self.emit(Phase(name="train", done=self.step, total=total_steps))

    def _tell_eval_loss(self, loss: float, total_steps: int) -> None:
        self.eval_losses[self.step] = loss
        self.emit(Metric(step=self.step, total_steps=total_steps, values={"eval_loss": loss}))
        held, count = self.held, min(self.plan.num_samples, len(self.held.prompts))
        limit = min(held.max_new_tokens, _SAMPLE_TOKENS)
        texts = answer_batch(
            self.model, self.tokenizer, held.prompts[:count], limit, held.stop_token_ids
        )
        for question, expected, text in zip(held.questions, held.expected, texts, strict=False):
            self.emit(Sample(step=self.step, prompt=question, expected=expected, text=text))

    def _add_tokenizer(self, adapter_folder: Path) -> None:
        copy_tokenizer(self.base_folder, adapter_folder)
        if not self.tokenizer.chat_template:  # what was trained with must be what is asked with
            template = chat_template_of(self.tokenizer, self.prepared.manifest.format)
            (adapter_folder / "chat_template.jinja").write_text(template)

    def _phase_of(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.emit(Phase(name=name, done=done, total=total))  # type: ignore[arg-type]


def _tell_about_data(prepared: Prepared, wanted_eval_rows: int, emit: Emit) -> None:
    data = prepared.manifest
    text = (
        f"{data.rows_used:,} examples in {data.packed_rows:,} rows, {data.trained_tokens:,} of "
        f"{data.tokens:,} tokens are trained on; {data.eval_rows:,} examples are held out."
    )
    emit(Note(level="info", text=text))
    if wanted_eval_rows and not data.eval_rows:
        text = "No held-out row is left that is not also trained on: set a share to hold out."
        emit(Note(level="warning", text=text))
    for code, rows in data.rows_dropped.items():
        emit(Note(level="warning", text=f"{rows:,} rows were left out: {code.replace('_', ' ')}."))
