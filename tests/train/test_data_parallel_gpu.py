"""Real workers on two GPUs over NCCL: as one GPU with the same rows, and an end in a sentence when one is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from qlora_space.core.events import Note
from qlora_space.core.machine import read_hardware
from qlora_space.places.environment import child_environment
from qlora_space.runs import RunFolder
from tests.train.small import STEPS, events_of, small_plan, small_run
from tests.train.test_gpu import losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
NOISE = 2e-2  # relative; bf16 on a random base of 64 channels


def gpu_run(home: Path, num_processes: int, **changed: object) -> RunFolder:
    """Eight rows an update."""
    hardware = read_hardware(home)
    assert hardware.num_gpus >= 2
    portions = {
        "gradient_accumulation_steps": 8 // num_processes,
        "num_processes": num_processes,
    }
    usual = {"step_kind": "fast", "lora_dropout": 0.0, "learning_rate": 2e-3}
    return small_run(home, small_plan(hardware=hardware, **portions | usual | changed))


def start(run: RunFolder) -> subprocess.Popen:
    command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)]
    return subprocess.Popen(command, env=child_environment(), stderr=run.log_file.open("a"))


def test_a_run_on_two_gpus_is_the_run_on_one(tmp_path: Path) -> None:
    runs = [gpu_run(tmp_path / str(n), n) for n in (1, 2)]
    for run in runs:
        assert start(run).wait(timeout=200) == 0, run.log_file.read_text()[-2000:]
        assert events_of(run)[-1].kind == "finished"
    one, two = map(losses, runs)
    assert len(two) == STEPS
    assert all(abs(a / b - 1) < NOISE for a, b in zip(one, two, strict=True))
    told = [e.text for e in events_of(runs[1]) if isinstance(e, Note)]
    assert "2 GPUs share every step." in told


@pytest.mark.parametrize("whom", ["other", "worker"])
def test_when_one_of_the_processes_is_killed_all_end(tmp_path: Path, whom: str) -> None:
    run = gpu_run(tmp_path, 2, max_steps=100_000, eval_steps=100_000, save_steps=0)
    worker = start(run)
    while len(losses(run)) < 5:
        assert worker.poll() is None, run.log_file.read_text()[-2000:]
        time.sleep(0.05)
    (other,) = [p for p in psutil.Process(worker.pid).children() if "train" in p.cmdline()]
    (other if whom == "other" else psutil.Process(worker.pid)).send_signal(signal.SIGKILL)
    worker.wait(timeout=60)
    assert psutil.wait_procs([other], timeout=20)[1] == []
    if whom == "other":
        last = events_of(run)[-1]
        assert last.kind == "failed"
        assert "GPU 2 of this run is lost" in last.cause
