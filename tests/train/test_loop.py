"""Faults put into a real training: it rolls back, makes smaller portions, waits or refuses, and says so."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from qlora_space.core.errors import ModelError, OutOfMemory
from qlora_space.core.events import Note, Rollback
from qlora_space.core.interruption import Interruption
from qlora_space.runs import EventLog, RunFolder, ended_early, view_of
from qlora_space.train import run as run_module
from qlora_space.train.checkpoint import load_checkpoint
from qlora_space.train.context import RunContext
from qlora_space.train.run import TrainingRun
from qlora_space.train.snapshot import Progress, capture
from tests.train.small import STEPS, events_of, go_on, outcome, small_plan, small_run

NAN = math.nan


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a training: its number from 1, the model, and the rows at once."""

    number: int
    model: PeftModel
    batch: dict[str, torch.Tensor]
    run: Callable[[], Any]


def adapter_of(model: PeftModel) -> torch.nn.Parameter:
    return next(p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n)


def broken_row(at: Pass) -> Any:
    """A row that the base has no finite answer to."""
    weight: Any = at.model.get_input_embeddings().weight  # type: ignore[operator]
    saved = weight.data.clone()
    weight.data[at.batch.inputs["input_ids"][0, 0]] = NAN
    try:
        return at.run()
    finally:
        weight.data.copy_(saved)


def broken_loss(at: Pass) -> Any:
    return at.run() * NAN


def broken_gradient(at: Pass) -> Any:
    loss = at.run()
    adapter_of(at.model).grad[0, 0] = NAN  # type: ignore[index]
    return loss


def broken_weight(at: Pass) -> Any:
    loss = at.run()
    adapter_of(at.model).data[0, 0] = NAN
    return loss


def no_memory(at: Pass) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def break_training(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Pass], Any],
    when: Callable[[Pass], bool],
) -> None:
    """Every pass of the training for which `when` is true has the fault."""
    numbers = iter(range(1, 10_000))
    original = run_module.make_step

    def make_step(trainer: Any, model: PeftModel, *rest: Any) -> Any:
        step, text = original(trainer, model, *rest)
        add_gradients = step.add_gradients

        def faulty(batch: Any, *numbers_of_items: int) -> Any:
            once = Pass(
                next(numbers), model, batch, lambda: add_gradients(batch, *numbers_of_items)
            )
            return fault(once) if when(once) else once.run()

        step.add_gradients = faulty
        return step, text

    monkeypatch.setattr(run_module, "make_step", make_step)


def notes(run: RunFolder, words: str) -> list[str]:
    return [e.text for e in events_of(run) if isinstance(e, Note) and words in e.text]


@pytest.mark.usefixtures("metrics_mode")
@pytest.mark.parametrize(
    "fault",
    [
        broken_gradient,
        broken_weight,
        pytest.param(broken_row, marks=pytest.mark.slow),
        pytest.param(broken_loss, marks=pytest.mark.slow),
    ],
)
def test_numbers_that_are_not_finite_roll_back_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable
) -> None:
    plan = small_plan(lr_scheduler_type="constant", warmup_steps=0, eval_steps=STEPS)
    run = small_run(tmp_path, plan)
    break_training(
        monkeypatch, fault, lambda at: at.number == 8
    )  # the longest rows, then two per step
    assert go_on(run).kind == "finished"
    (event,) = [e for e in events_of(run) if isinstance(e, Rollback)]
    assert event.step in (4, 5)
    # Weights that break before the step before is saved cost that one too.
    assert event.step - event.to_step in (1, 2)
    rate = run.plan().learning_rate
    assert event.learning_rate == rate / 2
    assert "nan" in event.why or "not finite" in event.why
    rates = [
        e.values["learning_rate"]
        for e in events_of(run)
        if e.kind == "metric" and "loss" in e.values
    ]
    assert rates == [rate] * (event.step - 1) + [rate / 2] * (STEPS - event.to_step)
    weights = load_file(run.adapter_folder / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())


@pytest.mark.usefixtures("metrics_mode")
def test_a_rollback_is_on_disk_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill right after it would lead to the time before, with the old learning rate."""
    run = small_run(tmp_path, small_plan(save_steps=3))
    break_training(monkeypatch, broken_loss, lambda at: at.number == 12)
    go_on(run)
    events = events_of(run)
    at = next(i for i, event in enumerate(events) if isinstance(event, Rollback))
    after = next(e for e in events[at:] if e.kind in ("checkpoint", "metric"))
    assert (after.kind, after.step) == ("checkpoint", 3)


@pytest.mark.usefixtures("metrics_mode")
def test_a_stop_during_the_step_that_breaks_keeps_the_weights_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, small_plan(eval_steps=100))

    def stopped(at: Pass) -> Any:
        run.ask_to_stop(keep=True)
        return broken_gradient(at)

    break_training(
        monkeypatch, stopped, lambda at: at.number == 7
    )  # the last micro-batch of step 3
    assert go_on(run).kind == "finished"
    weights = load_file(run.adapter_folder / "adapter_model.safetensors")
    kept = load_checkpoint(run.checkpoints_folder / "step-000002").adapter
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[name], kept[name]) for name in kept)


@pytest.mark.usefixtures("metrics_mode")
def test_a_fault_that_stays_ends_with_the_rate_and_leaves_only_sound_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path)
    break_training(monkeypatch, broken_gradient, lambda at: at.number >= 8)
    with pytest.raises(
        ModelError, match=r"broke down at step \d a third time: the gradient norm is nan"
    ):
        go_on(run)
    assert len([e for e in events_of(run) if isinstance(e, Rollback)]) == 2
    assert not run.has_adapter
    for folder in run.checkpoints_folder.glob("step-*"):
        assert load_checkpoint(folder).has_only_finite_weights()


@pytest.mark.usefixtures("metrics_mode")
def test_out_of_memory_makes_micro_batches_smaller_and_keeps_the_rows_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(
        per_device_train_batch_size=4, gradient_accumulation_steps=1, lora_dropout=0.0
    )
    whole = small_run(tmp_path / "whole", plan)
    go_on(whole)
    run = small_run(tmp_path / "poor", plan)
    is_large = lambda at: at.number > 4 and len(at.batch.inputs["labels"]) > 1  # noqa: E731
    break_training(monkeypatch, no_memory, is_large)
    assert go_on(run).kind == "finished"
    assert len(notes(run, "Memory ran out with micro-batches of 4 rows")) == 1
    assert len(notes(run, "Memory ran out with micro-batches of 2 rows")) == 1
    wanted, got = outcome(whole).numbers, outcome(run).numbers
    for step in range(1, STEPS + 1):
        assert got["loss"][step] == pytest.approx(wanted["loss"][step], rel=0.02)
    assert got["learning_rate"] == wanted["learning_rate"]
    small, large = (
        load_checkpoint(r.checkpoints_folder / "step-000006").progress for r in (run, whole)
    )
    assert small.micro_batch == 1
    assert small.trained_tokens == large.trained_tokens


def test_no_memory_for_one_row_names_its_length_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path)
    break_training(monkeypatch, no_memory, lambda at: True)
    with pytest.raises(OutOfMemory, match=r"One row of \d+ tokens .* Use max_length 64"):
        go_on(run)


@pytest.mark.usefixtures("metrics_mode")
def test_early_stopping_says_why_and_the_best_adapter_is_the_one_that_is_kept(
    tmp_path: Path,
) -> None:
    """With so low a rate the held-out loss does not get better."""
    plan = small_plan(
        max_steps=40, eval_steps=1, early_stopping_patience=2, learning_rate=1e-9,
        load_best_model_at_end=True,
    )  # fmt: skip
    run = small_run(tmp_path, plan)
    assert go_on(run).kind == "finished"
    losses = outcome(run).numbers["eval_loss"]
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert max(losses) == best + 2 < 40
    why = f"2 evaluations in a row brought no better held-out loss than step {best}."
    assert why in ended_early(view_of(run), plan)
    assert len(notes(run, f"The adapter of step {best} is kept")) == 1
    report = run.report()
    assert report is not None
    assert (report.best_step, report.adapter_step, report.stopped_by_hand) == (best, best, False)
    kept = load_file(run.adapter_folder / "adapter_model.safetensors")
    saved = load_file(run.checkpoints_folder / f"step-{best:06d}/adapter_model.safetensors")
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)


def trained(run: RunFolder, log: EventLog) -> TrainingRun:
    """All parts of a run but the last ones, so that what is in memory can be looked at."""
    context = RunContext(run, run.plan(), log.append, Interruption(), log.heartbeat)
    training = TrainingRun(context, None)
    training.prepare()
    training.load()
    training.train()
    return training


def test_the_wait_after_the_first_checkpoint_is_for_one_with_optimizer_states(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, small_plan(max_steps=1, save_seconds=0.001))
    log = EventLog(run.events_file)
    training = trained(run, log)
    waits, sizes = [], []
    for step in (0, 1):
        training.state.progress = Progress(step=step, micro_batch=2)
        snapshot = capture(training.state)
        now = time.monotonic()
        training.checkpointer.save(snapshot, started_at=now - 100)
        waits.append(training.checkpointer._save_at - now)
        sizes.append(snapshot.num_bytes)
    log.close()
    assert waits[1] == pytest.approx(100 / 0.008, rel=0.01)
    assert waits[0] / waits[1] == pytest.approx(sizes[1] / sizes[0], rel=0.01)


def test_checkpoints_by_time_take_at_most_a_hundredth_of_it(tmp_path: Path) -> None:
    """With no patience at all between them, the cost of the one before decides."""
    run = small_run(tmp_path, small_plan(save_steps=0, save_seconds=0.001, eval_steps=100))
    go_on(run)
    saved = [e for e in events_of(run) if e.kind == "checkpoint"]
    assert [saved[0].step, saved[-1].step] == [0, STEPS]
    by_time = saved[:-1]
    for before, after in itertools.pairwise(by_time):
        assert after.time - before.time >= 100 * before.seconds
    assert len(by_time) < STEPS


def go_on_and_at(run: RunFolder, is_time: Callable[[Any], bool], do: Callable[[], None]) -> Any:
    """One attempt, with `do` called at the first event for which `is_time` is true. Returns its last event."""
    log, waiting = EventLog(run.events_file), [do]

    def emit(event: Any) -> Any:
        if waiting and is_time(event):
            waiting.pop()()
        return log.append(event)

    try:
        return emit(run_module.train(run, emit, None))
    finally:
        log.close()


def is_step(number: int) -> Callable[[Any], bool]:
    return lambda e: e.kind == "metric" and "loss" in e.values and e.step == number


@pytest.mark.usefixtures("metrics_mode")
def test_a_stop_after_the_last_step_changes_nothing(tmp_path: Path) -> None:
    plan = small_plan(load_best_model_at_end=True, learning_rate=1e-9, eval_steps=1)
    whole, stopped = (small_run(tmp_path / name, plan) for name in ("whole", "stopped"))
    go_on(whole)
    end = go_on_and_at(stopped, is_step(STEPS), lambda: stopped.ask_to_stop(keep=True))
    assert (end.kind, end.stopped_by_hand) == ("finished", False)
    assert outcome(stopped) == outcome(whole)
    reports = [run.report() for run in (whole, stopped)]
    one, two = (report.model_dump() for report in reports if report)
    for name in ("scores", "best_step", "adapter_step", "stopped_by_hand", "answers"):
        assert one[name] == two[name], name
    assert 0 < one["best_step"] == one["adapter_step"] < STEPS


def test_a_stop_before_the_last_step_is_said_by_event_and_report_alike(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    end = go_on_and_at(run, is_step(2), lambda: run.ask_to_stop(keep=True))
    report = run.report()
    assert report is not None
    assert end.stopped_by_hand
    assert report.stopped_by_hand
    assert (report.steps, report.planned_steps, report.answers) == (2, STEPS, ())


def test_a_stop_while_the_report_is_made_does_not_make_it_a_stopped_run(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    is_time = lambda e: e.kind == "phase" and e.name == "report"  # noqa: E731
    end = go_on_and_at(run, is_time, lambda: run.ask_to_stop(keep=True))
    report = run.report()
    assert report is not None
    assert (end.stopped_by_hand, report.stopped_by_hand) == (False, False)


@pytest.mark.parametrize("phase", ["model", "save", "report"])
def test_a_run_that_is_discarded_late_keeps_nothing(tmp_path: Path, phase: str) -> None:
    run = small_run(tmp_path)
    is_time = lambda e: e.kind == "phase" and e.name == phase  # noqa: E731
    assert go_on_and_at(run, is_time, lambda: run.ask_to_stop(keep=False)).kind == "cancelled"
    assert not run.has_adapter
    assert not run.checkpoints_folder.exists()
    assert run.report() is None


def test_the_report_has_the_loss_of_each_held_out_row(tmp_path: Path) -> None:
    run = small_run(tmp_path, small_plan(num_eval_rows=24, eval_fraction=0.9))
    go_on(run)
    report = run.report()
    assert report is not None
    rows, change = report.heldout_rows, report.heldout_change
    assert rows is not None
    assert change is not None
    assert len(rows.tokens) == len(rows.base) == len(rows.trained) == report.num_eval_rows == 24
    for sums, score in zip((rows.base, rows.trained), report.scores, strict=True):
        assert score.heldout_loss == pytest.approx(sum(sums) / sum(rows.tokens))
    assert change.low < change.change < change.high
    assert report.scores[1].heldout_loss - report.scores[0].heldout_loss == pytest.approx(
        change.change
    )  # type: ignore[operator]


def test_a_run_says_how_many_steps_it_has_where_the_plan_could_not_know(tmp_path: Path) -> None:
    plan = small_plan(max_steps=-1, num_train_epochs=0.2)
    guessed = plan.model_copy(update={"estimate": plan.estimate.model_copy(update={"steps": 99})})
    run = small_run(tmp_path / "guessed", guessed)
    go_on(run)
    steps = view_of(run).step
    assert notes(run, "of the plan") == [
        f"{steps} steps, not the 99 of the plan: all rows are counted now."
    ]
    known = plan.model_copy(update={"estimate": plan.estimate.model_copy(update={"steps": steps})})
    run = small_run(tmp_path / "known", known)
    go_on(run)
    assert view_of(run).step == steps
    assert not notes(run, "of the plan")
