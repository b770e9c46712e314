"""train(): from a run folder with a plan to a run folder with an adapter and a report.

Started on a run that has checkpoints it goes on from the newest whole one, as if it had never stopped.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from qlora_space.core.atomic import write_atomically
from qlora_space.core.errors import ModelError
from qlora_space.core.events import Cancelled, Finished, Paused
from qlora_space.core.interruption import Interrupted, Interruption
from qlora_space.core.launch import Launch
from qlora_space.data import Prepared, chat_template_of, load_tokenizer, prepare
from qlora_space.hub import copy_tokenizer, fetch_base
from qlora_space.model import explains_out_of_memory
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.train.base_results import base_results
from qlora_space.train.batches import PackedCollator, TrainingRows, total_steps
from qlora_space.train.checkpointing import Checkpointer
from qlora_space.train.context import Emit, RunContext
from qlora_space.train.data_parallel import Ranks
from qlora_space.train.evaluate import Evaluator
from qlora_space.train.held_out import held_out
from qlora_space.train.load import load_model, warm_up_in_background
from qlora_space.train.loop import Loop
from qlora_space.train.report import RunEnd, make_report, measures_of
from qlora_space.train.snapshot import restore_adapter
from qlora_space.train.step import make_step
from qlora_space.train.trl_trainer import make_trainer, prepare_for_training


def train(
    run: RunFolder,
    emit: Emit,
    token: str | None,
    interruption: Interruption | None = None,
    heartbeat: Callable[[], None] = lambda: None,
    other_gpus: Sequence[str] = (),
    launch: Launch | None = None,
) -> Finished | Cancelled | Paused:
    """Do the whole job; returns how it ended. Raises QloraSpaceError for what the user must change.

    other_gpus: beside the one that this process sees, as CUDA_VISIBLE_DEVICES names them. launch: how other processes
    were started that share the steps; none is started here then.
    """
    context = RunContext(run, run.plan(), emit, interruption or Interruption(), heartbeat)
    training = TrainingRun(context, token, other_gpus, launch)
    try:
        with explains_out_of_memory("Training"):
            return training.execute()
    except Interrupted as interrupted:
        return Paused(step=training.step, why=interrupted.why)
    finally:
        training.ranks.close()


class TrainingRun:
    """Everything that is in memory while a run is trained."""

    def __init__(
        self,
        context: RunContext,
        token: str | None,
        other_gpus: Sequence[str] = (),
        launch: Launch | None = None,
    ) -> None:
        self.started_at = time.monotonic()
        self.context, self.run, self.plan, self.token = context, context.run, context.plan, token
        gpus = _shared_gpus(self.plan, other_gpus)
        self.ranks = Ranks(self.run, context.check_in, gpus=gpus, launch=launch)
        self.step = 0  # optimizer steps done
        self.is_loaded = False

    def execute(self) -> Finished | Cancelled:
        """The five parts of a run, in order."""
        return self._do(self.prepare, self.load, self.train, self.save, self.evaluate)

    def train_on(self) -> Finished | Cancelled:
        """From the newest checkpoint, after an interruption of `execute` that left everything in memory."""
        return self._do(self.train, self.save, self.evaluate)

    def _do(self, *parts: Callable[[], None]) -> Finished | Cancelled:
        """A run that is to be discarded ends after any of them."""
        for part in parts:
            part()
            if self.run.stop_request() == "discard":
                self.run.discard()
                return Cancelled(step=self.step)
        return Finished(step=self.step, stopped_by_hand=self.ending == "stopped")

    def prepare(self) -> None:
        """Files of the base, and the dataset as packed tokens."""
        self.base_folder = fetch_base(self.plan.base, self.token)
        self.warming_up = warm_up_in_background(self.plan, self.base_folder)
        if not self.plan.is_low_bit:
            self.ranks.start(self.base_folder)  # they load it while the data is prepared here
        self.tokenizer = load_tokenizer(self.base_folder)
        phase = lambda done, total: self.context.phase("data", done, total)  # noqa: E731
        shared = self.run.home.prepared_folder(self.run.owner)
        self.prepared = prepare(self.plan, self.run.data_folder, phase, self.token, shared=shared)
        _note_data(self.context, self.prepared)

    def load(self) -> None:
        """Base and adapter, optimizer, the training step, and the GPUs that share it."""
        context, plan = self.context, self.plan
        model = load_model(context, self.base_folder, self.prepared, self.tokenizer)
        self.held = held_out(self.tokenizer, self.prepared, plan)
        dataset = Dataset.from_file(str(self.prepared.train_file))
        rows = TrainingRows(dataset, PackedCollator(pad_token_id=self.tokenizer.pad_token_id or 0))
        if plan.is_low_bit:
            self.ranks.start(
                self.base_folder
            )  # the packed base, which they load, is there only now
        self._connect_ranks()
        if self.warming_up is not None:
            self.warming_up.join()
        trainer = make_trainer(model, self.tokenizer, plan, rows, self.run.path)
        policies_file = self.run.home.policies_file()
        key = self.prepared.manifest.key
        step, text = make_step(trainer, model, plan, rows, policies_file, self.ranks, key)
        _note_step(context, text, step.num_processes)
        self.state = prepare_for_training(trainer, plan, total_steps(plan, len(rows)))
        _note_steps(context, self.state.total_steps)
        known = base_results(self.run, plan)
        self.evaluator = Evaluator(
            context, self.state, step, rows, self.tokenizer, self.held, known
        )
        self.checkpointer = Checkpointer(context, self.state)
        self.loop = Loop(context, self.state, step, rows, self.evaluator, self.checkpointer)
        self.is_loaded = True

    def train(self) -> None:
        """From the newest whole checkpoint, if there is one, to the last step or a stop."""
        start = self.checkpointer.newest()
        if start:
            restore_adapter(self.state.model, start.adapter)
        self.context.phase("train", start.progress.step if start else 0, self.state.total_steps)
        try:
            self.ending = self.loop.run(start)
        finally:
            self.step = self.state.progress.step

    def save(self) -> None:
        """The adapter with the base's own tokenizer files. Nothing after this can lose it."""
        self.adapter_step = self._restore_best()
        self.context.phase("save", 0, 1)
        num_bytes = self.checkpointer.save_adapter(self._add_tokenizer)
        self.run.report_file.unlink(missing_ok=True)  # one of an earlier attempt's adapter
        self.context.note(f"Saved the adapter, {num_bytes / 2**20:.1f} MiB.")

    def evaluate(self) -> None:
        """Trained and base model on the same held-out rows, and the report of both."""
        with_answers = self.ending != "stopped"
        self.context.phase("report", 0, 2)
        trained = self.evaluator.measure_trained(self.adapter_step, with_answers=with_answers)
        self.context.phase("report", 1, 2)
        base = self.evaluator.measure_base(trained)
        end = RunEnd(
            progress=self.state.progress,
            planned_steps=self.state.total_steps,
            adapter_step=self.adapter_step,
            stopped_by_hand=self.ending == "stopped",
            total_seconds=time.monotonic() - self.started_at,
        )
        report = make_report(
            run=self.run,
            prepared=self.prepared,
            both=(base, trained),
            measures=measures_of(self.plan.score, self.held, base.answers, trained.answers),
            answers=self.evaluator.shown_answers(base.answers, trained.answers),
            end=end,
        )
        write_atomically(self.run.report_file, report.model_dump_json(indent=1))
        self.context.phase("report", 2, 2)

    def _connect_ranks(self) -> None:
        """What one GPU can do is not lost because another one cannot take part."""
        try:
            self.ranks.connect()
        except ModelError as error:
            self.ranks.close()
            self.context.note(f"{error.what} One GPU does all the work.", "warning")

    def _restore_best(self) -> int:
        """Put the best checkpoint's adapter into the model. Returns the step of the adapter that is there now."""
        progress, best = self.state.progress, self.state.progress.best_step
        if self.ending == "stopped" or not self.plan.load_best_model_at_end:
            return self.step
        if best is None or best == self.step:
            return self.step
        snapshot = self.checkpointer.best(best)
        if snapshot is None:
            return self.step
        restore_adapter(self.state.model, snapshot.adapter)
        loss = progress.eval_losses[best]
        self.context.note(
            f"The adapter of step {best} is kept: its held-out loss, {loss:.4f}, was the lowest."
        )
        return best

    def _add_tokenizer(self, adapter_folder: Path) -> None:
        copy_tokenizer(self.base_folder, adapter_folder)
        if not self.tokenizer.chat_template:  # inference must use the template of training
            template = chat_template_of(self.tokenizer, self.prepared.manifest.format)
            (adapter_folder / "chat_template.jinja").write_text(template)


def _shared_gpus(plan: Plan, other_gpus: Sequence[str]) -> Sequence[str]:
    """One for each further process. On a CPU, which only tests share, no GPU is named."""
    others = plan.num_processes - 1
    return ("",) * others if plan.hardware.device == "cpu" else other_gpus[:others]


def _note_data(context: RunContext, prepared: Prepared) -> None:
    data = prepared.manifest
    context.note(
        f"{data.rows_used:,} examples in {data.packed_rows:,} rows, {data.trained_tokens:,} of "
        f"{data.tokens:,} tokens are trained on; {data.eval_rows:,} examples are held out."
    )
    if (context.plan.eval_split or context.plan.eval_fraction) and not data.eval_rows:
        text = "No held-out row is left that is not also trained on: set a share to hold out."
        context.note(text, "warning")
    for code, rows in data.rows_dropped.items():
        context.note(f"{rows:,} rows were left out: {code.replace('_', ' ')}.", "warning")


def _note_steps(context: RunContext, total_steps: int) -> None:
    """Where the epochs decide: only a part of the rows may have been inspected when the plan was made."""
    planned = context.plan.estimate.steps
    if context.plan.max_steps < 0 and total_steps != planned:
        context.note(
            f"{total_steps:,} steps, not the {planned:,} of the plan: all rows are counted now."
        )


def _note_step(context: RunContext, text: str, num_processes: int) -> None:
    planned = context.plan.num_processes
    if text:
        context.note(text)
    if num_processes > 1:
        context.note(f"{num_processes} GPUs share every step.")
    if num_processes < planned:
        context.note(
            f"Planned for {planned} GPUs, going on with {num_processes}: as many rows per step as planned, "
            "in more micro-batches."
        )
