"""train(): from a run folder with a plan to a run folder with an adapter and a report.

Started on a run that has checkpoints it goes on from the newest whole one, as if it had never stopped.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Cancelled, Event, Finished, Note, Paused, Phase
from qlora_space.core.interruption import Interrupted, Interruption
from qlora_space.data import Prepared, chat_template_of, load_tokenizer, prepare
from qlora_space.hub import copy_tokenizer, fetch_base
from qlora_space.model import explains_out_of_memory
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder, write_atomically
from qlora_space.train.checkpoint import newest_checkpoint
from qlora_space.train.data_parallel import Followers
from qlora_space.train.evaluate import held_out, score, shown_answers
from qlora_space.train.load import start_model, warm_up_beside
from qlora_space.train.loop import Loop
from qlora_space.train.report import make_report
from qlora_space.train.snapshot import Snapshot, restore_adapter
from qlora_space.train.trainer import RunTrainer
from qlora_space.train.watch import Watch

Emit = Callable[[Event], object]


def train(
    run: RunFolder,
    emit: Emit,
    token: str | None,
    interruption: Interruption | None = None,
    heartbeat: Callable[[], None] = lambda: None,
    other_gpus: Sequence[str] = (),
) -> Finished | Cancelled | Paused:
    """Do the whole job; returns how it ended. Raises QloraSpaceError for what the user must change.

    other_gpus: beside the one that this process sees, as CUDA_VISIBLE_DEVICES names them.
    """
    session, interruption = None, interruption or Interruption()

    def live() -> None:
        heartbeat()
        interruption.check()

    followers = Followers(run, _helping(run.plan(), other_gpus), live)
    try:
        with explains_out_of_memory("Training"):
            session = _Session(run, emit, token, interruption, heartbeat, followers)
            return session.go()
    except Interrupted as interrupted:
        return Paused(step=session.step if session else 0, why=interrupted.why)
    finally:
        followers.close()


def _helping(plan: Plan, other_gpus: Sequence[str]) -> Sequence[str]:
    """A card for each follower. A CPU, which no plan of resolve() shares, is there as often as one likes."""
    others = plan.num_processes - 1
    return ("",) * others if plan.hardware.device == "cpu" else other_gpus[:others]


class _Session:
    """Everything that is in memory while a run runs."""

    def __init__(
        self,
        run: RunFolder,
        emit: Emit,
        token: str | None,
        interruption: Interruption,
        heartbeat: Callable[[], None],
        followers: Followers,
    ) -> None:
        self.started = time.monotonic()
        self.run, self.emit, self.plan = run, emit, run.plan()
        self.base_folder = fetch_base(self.plan.base, token)
        warming = warm_up_beside(self.plan, self.base_folder)
        if not self.plan.is_low_bit:
            followers.start(self.base_folder)  # they read it while the data is read here
        self.tokenizer = load_tokenizer(self.base_folder)
        self.prepared = prepare(
            self.plan,
            run.data_folder,
            self._phase_of("data"),
            token,
            shared=run.home.prepared_folder,
        )
        _tell_about_data(self.prepared, self.plan.num_eval_rows, emit)
        self.model = start_model(run, self.base_folder, self.prepared, self.tokenizer, emit)
        self.held = held_out(self.tokenizer, self.prepared, self.plan)
        rows = Dataset.from_file(str(self.prepared.train_file))
        if self.plan.is_low_bit:
            followers.start(self.base_folder)  # what they read, the packed base, is there only now
        self._connect(followers)
        if warming is not None:
            warming.join()
        self.trainer = RunTrainer(
            self.model,
            self.tokenizer,
            self.plan,
            rows,
            run.path,
            run.home.policies_file(),
            followers,
        )
        self._tell_about_step()
        self.watch = Watch(run, self.plan, emit, heartbeat, self.trainer, self.tokenizer, self.held)
        self.loop = Loop(self.trainer, self.plan, self.watch, interruption)

    def _connect(self, followers: Followers) -> None:
        """What one GPU can do is not lost because another cannot help."""
        try:
            followers.connect()
        except ModelError as error:
            followers.close()
            self.emit(Note(level="warning", text=f"{error.what} One GPU does all the work."))

    def _tell_about_step(self) -> None:
        trainer, planned = self.trainer, self.plan.num_processes
        if trainer.step_text:
            self.emit(Note(level="info", text=trainer.step_text))
        if trainer.num_processes > 1:
            self.emit(Note(level="info", text=f"{trainer.num_processes} GPUs share every step."))
        if trainer.num_processes < planned:
            text = (
                f"Planned for {planned} GPUs, going on with {trainer.num_processes}: "
                "as many rows an update as planned, in more portions."
            )
            self.emit(Note(level="info", text=text))

    @property
    def step(self) -> int:
        return self.loop.progress.step

    def go(self) -> Finished | Cancelled:
        """Train, save, measure; or forget everything if that was asked."""
        self.loop.run(self._start())
        if self.run.stop_request() == "discard":
            shutil.rmtree(self.run.checkpoints_folder, ignore_errors=True)
            shutil.rmtree(self.run.adapter_folder, ignore_errors=True)
            return Cancelled(step=self.step)
        adapter_step = self._choose_best()
        self.save()
        self.measure(adapter_step)
        return Finished(step=self.step, stopped_early=self.loop.ending == "stopped")

    def _start(self) -> Snapshot | None:
        """What to go on from. Says which checkpoints were damaged, and what was used instead."""
        snapshot, skipped = newest_checkpoint(self.run.checkpoints_folder)
        for sentence in skipped:
            text = f"A checkpoint was damaged and is not used. {sentence}."
            self.emit(Note(level="warning", text=text))
        if snapshot:
            restore_adapter(self.model, snapshot.adapter)
            step = self.watch.saved_step = snapshot.progress.step
            self.emit(Note(level="info", text=f"Going on after step {step}, from its checkpoint."))
        total = self.trainer.total_steps
        done = snapshot.progress.step if snapshot else 0
        self.emit(Phase(name="train", done=done, total=total))
        return snapshot

    def _choose_best(self) -> int:
        """Put the best checkpoint's adapter into the model. Returns the step of what is there now."""
        best = self.loop.progress.best_step
        if self.loop.ending == "stopped" or not self.plan.load_best_model_at_end:
            return self.step
        if best is None or best == self.step:
            return self.step
        snapshot = self.watch.checkpoint(best)
        if snapshot is None:
            return self.step
        restore_adapter(self.model, snapshot.adapter)
        losses = self.loop.progress.eval_losses
        text = f"The adapter of step {best} is kept: its held-out loss, {losses[best]:.4f}, was the lowest."
        self.emit(Note(level="info", text=text))
        return best

    def save(self) -> None:
        """The adapter with the base's own tokenizer files. Nothing after this can lose it."""
        self.emit(Phase(name="save", done=0, total=1))
        num_bytes = self.watch.save_adapter(self.model, self._add_tokenizer)
        self.run.report_file.unlink(missing_ok=True)  # one of an earlier attempt's adapter
        self.emit(Note(level="info", text=f"Saved the adapter, {num_bytes / 2**20:.1f} MiB."))

    def measure(self, adapter_step: int) -> None:
        """Trained and base model on the same held-out rows, and the report of both."""
        with_answers = self.run.stop_request() is None
        what = (self.trainer, self.model, self.tokenizer, self.held)
        how = {"with_answers": with_answers, "between_tokens": self.watch.between_tokens}
        self.emit(Phase(name="report", done=0, total=2))
        trained, adapted_answers = score(*what, with_adapter=True, **how)
        self.emit(Phase(name="report", done=1, total=2))
        base, base_answers = score(*what, with_adapter=False, **how)
        progress = self.loop.progress
        report = make_report(
            run=self.run,
            prepared=self.prepared,
            scores=(base, trained),
            answers=shown_answers(self.held, base_answers, adapted_answers),
            progress=progress,
            total_seconds=time.monotonic() - self.started,
            adapter_step=adapter_step,
        )
        write_atomically(self.run.report_file, report.model_dump_json(indent=1))
        self.emit(Phase(name="report", done=2, total=2))

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
