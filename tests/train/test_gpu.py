"""What only a GPU can show: paged states, its generator, its memory."""

from pathlib import Path

import pytest
import torch

from qlora_space.core.events import Metric, Note
from qlora_space.core.interruption import Interruption
from qlora_space.core.machine import read_hardware
from qlora_space.runs import RunFolder
from qlora_space.train.checkpoint import load_checkpoint
from tests.train.small import STEPS, events_of, go_on, small_plan, small_run

pytestmark = pytest.mark.gpu
NOISE = 2e-2  # relative; bf16 on a random base of 64 channels


def gpu_run(home: Path, **changed: object) -> RunFolder:
    plan = small_plan(hardware=read_hardware(home), **changed)
    return small_run(home, plan)


def metrics(run: RunFolder) -> list[Metric]:
    return [e for e in events_of(run) if isinstance(e, Metric) and "loss" in e.values]


def losses(run: RunFolder) -> list[float]:
    return [event.values["loss"] for event in metrics(run)]


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch"])
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(tmp_path: Path, optim: str) -> None:
    whole = gpu_run(tmp_path / "whole", optim=optim)
    go_on(whole)
    broken, interruption = gpu_run(tmp_path / "broken", optim=optim), Interruption()
    pulses = iter(range(1000))
    stop = lambda: interruption.interrupt("signal") if next(pulses) == 9 else None  # noqa: E731
    assert go_on(broken, interruption, heartbeat=stop).kind == "paused"
    assert go_on(broken).kind == "finished"
    assert len(losses(broken)) == STEPS
    assert all(abs(a / b - 1) < NOISE for a, b in zip(losses(broken), losses(whole), strict=True))


def test_a_checkpoint_of_paged_states_holds_what_the_gpu_has(tmp_path: Path) -> None:
    run = gpu_run(tmp_path, optim="paged_adamw_8bit")
    go_on(run)
    snapshot = load_checkpoint(run.checkpoints_folder / f"step-{STEPS:06d}")
    states = [t for name, t in snapshot.optimizer.items() if name.endswith("state1")]
    assert states
    assert all(bool(t.any()) for t in states)
    assert any(name.startswith("cuda.") for name in snapshot.rng)


def test_memory_that_runs_out_makes_the_portions_smaller(tmp_path: Path) -> None:
    plan = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "bits": 16,
            "max_rows": 1000, "max_length": 2048, "num_samples": 0, "gradient_checkpointing": False}  # fmt: skip
    rich = gpu_run(tmp_path / "rich", **plan)
    torch.cuda.reset_peak_memory_stats()
    go_on(rich)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / torch.cuda.mem_get_info()[1])
    poor = gpu_run(tmp_path / "poor", **plan)
    try:
        ending = go_on(poor)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = [e.text for e in events_of(poor) if isinstance(e, Note) and "Memory ran out" in e.text]
    assert ending.kind == "finished"
    assert told
    assert all(abs(a / b - 1) < NOISE for a, b in zip(losses(poor), losses(rich), strict=True))
