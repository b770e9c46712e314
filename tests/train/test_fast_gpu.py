"""Whole runs on a GPU the fast way: they say so, end as plain ones do, and go on where they were broken off."""

from pathlib import Path

import pytest
import torch

from qlora_space.core.events import Note
from qlora_space.core.interruption import Interruption
from qlora_space.core.machine import read_hardware
from qlora_space.runs import EventLog, RunFolder
from qlora_space.train.batches import num_trained
from qlora_space.train.step import FusedStep
from tests.train.small import events_of, go_on, small_plan, small_run
from tests.train.test_gpu import losses
from tests.train.test_loop import trained

pytestmark = pytest.mark.gpu
NOISE = 2e-2  # relative; bf16 on a random base of 64 channels


def gpu_run(home: Path, **changed: object) -> RunFolder:
    wanted = {"lora_dropout": 0.0, "step_kind": "fast", "learning_rate": 2e-3} | changed
    return small_run(home, small_plan(hardware=read_hardware(home), **wanted))


def notes(run: RunFolder) -> list[str]:
    return [e.text for e in events_of(run) if isinstance(e, Note)]


def test_two_hundred_steps_lie_on_those_of_trl(tmp_path: Path) -> None:
    """As near as trl's lie to their own repetition, or within 1 %."""
    long = {"max_steps": 200, "eval_steps": 100, "save_steps": 100, "num_samples": 0}
    fast = gpu_run(tmp_path / "fast", **long)
    plain, again = (gpu_run(tmp_path / n, **long, step_kind="plain") for n in ("plain", "again"))
    for run in (fast, plain, again):
        assert go_on(run).kind == "finished"
    curves = [torch.tensor(losses(run)) for run in (plain, again, fast)]
    apart = [(curves[0] / c - 1).abs().mean().item() for c in curves[1:]]
    assert any("fused layers" in text for text in notes(fast))
    assert curves[0][-10:].mean() < 0.9 * curves[0][:10].mean()
    assert apart[1] < max(3 * apart[0], 0.01)


def test_an_interrupted_fast_run_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole = gpu_run(tmp_path / "whole")
    go_on(whole)
    broken, interruption = gpu_run(tmp_path / "broken"), Interruption()
    pulses = iter(range(1000))
    stop = lambda: interruption.interrupt("signal") if next(pulses) == 9 else None  # noqa: E731
    assert go_on(broken, interruption, heartbeat=stop).kind == "paused"
    assert go_on(broken).kind == "finished"
    assert all(abs(a / b - 1) < NOISE for a, b in zip(losses(broken), losses(whole), strict=True))


def test_a_roomy_card_keeps_all_and_a_later_run_remembers_it(tmp_path: Path) -> None:
    big = {"max_length": 1024, "max_rows": 1000, "per_device_train_batch_size": 8, "num_samples": 0}
    first = gpu_run(tmp_path, **big)
    go_on(first)
    remembered = (tmp_path / "activation_policies.json").read_text()
    assert '"WEIGHTS"' in remembered
    second = gpu_run(tmp_path, **big)
    go_on(second)
    assert (tmp_path / "activation_policies.json").read_text() == remembered
    assert all(abs(a / b - 1) < NOISE for a, b in zip(losses(first), losses(second), strict=True))


def test_a_run_in_fp8_says_by_how_much_that_differs_and_learns_the_same(tmp_path: Path) -> None:
    long = {"max_steps": 100, "eval_steps": 100, "save_steps": 100, "num_samples": 0}
    exact, rounded = (
        gpu_run(tmp_path / "exact", **long),
        gpu_run(tmp_path / "fp8", **long, fp8=True),
    )
    for run in (exact, rounded):
        assert go_on(run).kind == "finished"
    assert any("FP8" in text and "changes the loss" in text for text in notes(rounded))
    assert not any("FP8" in text for text in notes(exact))
    assert abs(losses(rounded)[-1] / losses(exact)[-1] - 1) < NOISE


def test_captured_steps_give_their_memory_back_before_anything_is_asked(tmp_path: Path) -> None:
    run = gpu_run(tmp_path, max_steps=1)
    log = EventLog(run.events_file)
    training = trained(run, log)
    step = training.loop.step
    assert isinstance(step, FusedStep)
    batch = training.loop.rows.longest(1)
    for _ in range(3):  # a shape is captured when it comes the second time
        step.add_gradients(batch, num_trained(batch), 1)
    captured, before = step.fast_step._steps._graphs, torch.cuda.memory_reserved()
    assert captured
    with training.evaluator._inference():
        assert not captured
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() < before
    log.close()
