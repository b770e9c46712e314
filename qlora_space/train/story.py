"""train(): from a run folder with a plan to a run folder with an adapter and a report."""

import importlib.metadata
import math
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qlora_space.data import Prepared, load_tokenizer, prepare
from qlora_space.events import Cancelled, Event, Finished, Metric, Note, Phase, Sample
from qlora_space.generate import answer_batch
from qlora_space.hub import fetch_base
from qlora_space.model import adapter_sha256, add_adapter, explains_out_of_memory, load_base
from qlora_space.plan import Plan
from qlora_space.runs import Report, RunFolder, Scores, write_atomically
from qlora_space.train.checkpoint import save_checkpoint, save_whole
from qlora_space.train.measure import HeldOut, held_out, score, shown_answers
from qlora_space.train.memory import memory_now_gib, memory_peak_gib
from qlora_space.train.trainer import RunTrainer, StepCallback

Emit = Callable[[Event], None]
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")


def train(run: RunFolder, emit: Emit, token: str | None) -> Finished | Cancelled:
    """Do the whole job; returns how it ended. Raises QloraSpaceError for what the user must change."""
    started = time.monotonic()
    plan = run.plan()
    folder = fetch_base(plan.base, token)
    tokenizer = load_tokenizer(folder)
    prepared = prepare(
        plan,
        run.data_folder,
        lambda done, total: emit(Phase(name="data", done=done, total=total)),
        token,
    )
    _tell_about_data(prepared, emit)
    emit(Phase(name="model", done=0, total=1))
    model = add_adapter(load_base(folder, plan.bits, plan.hardware.device), plan)
    emit(Phase(name="model", done=1, total=1))
    rows = Dataset.from_file(str(prepared.train_file))
    held = held_out(tokenizer, prepared, plan.base.source == "demo")
    trainer = RunTrainer(model, tokenizer, plan, rows, run.path)
    session = _Session(plan, run, emit, model, trainer, rows, held)
    with explains_out_of_memory("Training"):
        session.run()
        if session.run_folder.stop_wish() == "discard":
            shutil.rmtree(run.checkpoints_folder, ignore_errors=True)
            return Cancelled(step=session.step)
        _finish(session, tokenizer, prepared, started)
    return Finished(step=session.step, stopped_early=session.run_folder.stop_wish() is not None)


@dataclass
class _Session:
    """The part between the first and the last step."""

    plan: Plan
    run_folder: RunFolder
    emit: Emit
    model: PeftModel
    trainer: RunTrainer
    rows: Dataset
    held: HeldOut
    step: int = 0
    seconds: float = 0.0
    eval_losses: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        callback = StepCallback(self._on_step, lambda: self.run_folder.stop_wish() is not None)
        callback.attach(self.trainer)
        self._look(0, self.total_steps())
        self.emit(Phase(name="train", done=0, total=self.total_steps()))
        started = time.monotonic()
        self.trainer.train()
        self.seconds = time.monotonic() - started

    def total_steps(self) -> int:
        """As transformers.Trainer counts them."""
        if self.plan.max_steps > 0:
            return self.plan.max_steps
        batches = math.ceil(len(self.rows) / self.plan.per_device_train_batch_size)
        updates = max(1, math.ceil(batches / self.plan.gradient_accumulation_steps))
        return math.ceil(updates * self.plan.num_train_epochs)

    def _on_step(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        device = self.plan.hardware.device
        self.step = step
        memory = {"memory_gib": memory_now_gib(device), "peak_gib": memory_peak_gib(device)}
        self.emit(Metric(step=step, total_steps=total_steps, values=values | memory))
        if step % self.plan.save_steps == 0 and step < total_steps:
            self.emit(save_checkpoint(self.model, self.run_folder.checkpoints_folder, step))
        if step % self.plan.eval_steps == 0 and step < total_steps:
            self._look(step, total_steps)

    def _look(self, step: int, total_steps: int) -> None:
        """Held-out loss and a few answers, for the person who watches."""
        if self.held.rows is None:
            return
        loss = self.trainer.mean_loss(self.held.rows)
        self.eval_losses[step] = loss
        self.emit(Metric(step=step, total_steps=total_steps, values={"eval_loss": loss}))
        self.sample(step)

    def sample(self, step: int) -> None:
        count = min(self.plan.num_samples, len(self.held.prompts))
        if not count:
            return
        tokenizer, limit = self.trainer.processing_class, min(self.held.max_new_tokens, 128)
        texts = answer_batch(
            self.model, tokenizer, self.held.prompts[:count], limit, self.held.stop_token_ids
        )
        for question, expected, text in zip(
            self.held.questions, self.held.expected, texts, strict=False
        ):
            self.emit(Sample(step=step, prompt=question, expected=expected, text=text))


def _finish(
    session: _Session, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, started: float
) -> None:
    """Save first, measure afterwards: nothing after the save can lose the adapter."""
    run, emit = session.run_folder, session.emit
    emit(Phase(name="save", done=0, total=1))
    num_bytes = save_whole(session.model, run.adapter_folder, tokenizer)
    emit(Note(level="info", text=f"Saved the adapter, {num_bytes / 2**20:.1f} MiB."))
    emit(Phase(name="report", done=0, total=2))
    with_answers = session.run_folder.stop_wish() is None
    trained, adapted_answers = score(
        session.trainer, session.model, session.held, with_adapter=True, with_answers=with_answers
    )
    if trained.heldout_loss is not None:
        session.eval_losses[session.step] = trained.heldout_loss
        emit(
            Metric(
                step=session.step,
                total_steps=session.total_steps(),
                values={"eval_loss": trained.heldout_loss},
            )
        )
        session.sample(session.step)
    emit(Phase(name="report", done=1, total=2))
    base, base_answers = score(
        session.trainer, session.model, session.held, with_adapter=False, with_answers=with_answers
    )
    report = _report(
        session,
        (base, trained),
        shown_answers(session.held, base_answers, adapted_answers),
        prepared,
        started,
    )
    write_atomically(run.report_file, report.model_dump_json(indent=1))
    emit(Phase(name="report", done=2, total=2))


def _report(
    session: _Session,
    scores: tuple[Scores, ...],
    answers: tuple,
    prepared: Prepared,
    started: float,
) -> Report:
    trainer, held = session.trainer, session.held
    epochs = session.step / max(1, session.total_steps()) * session.plan.num_train_epochs
    losses = session.eval_losses
    return Report(
        scores=scores,
        answers=answers,
        num_eval_rows=prepared.manifest.eval_rows,
        num_exact_match_rows=len(held.prompts) if scores[0].exact_match is not None else 0,
        steps=session.step,
        trained_tokens=round(prepared.manifest.trained_tokens * epochs),
        train_seconds=round(session.seconds, 2),
        total_seconds=round(time.monotonic() - started, 2),
        tokens_per_second=round(trainer.tokens_seen / max(session.seconds, 1e-9), 1),
        peak_gib=round(memory_peak_gib(session.plan.hardware.device), 3),
        best_step=min(losses, key=losses.__getitem__) if losses else None,
        stopped_early=session.run_folder.stop_wish() is not None,
        adapter_sha256=adapter_sha256(session.run_folder.adapter_folder),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )


def _tell_about_data(prepared: Prepared, emit: Emit) -> None:
    data = prepared.manifest
    text = (
        f"{data.rows_used:,} examples in {data.packed_rows:,} rows, {data.trained_tokens:,} of "
        f"{data.tokens:,} tokens are trained on; {data.eval_rows:,} examples are held out."
    )
    emit(Note(level="info", text=text))
    for code, rows in data.rows_dropped.items():
        emit(Note(level="warning", text=f"{rows:,} rows were left out: {code.replace('_', ' ')}."))
