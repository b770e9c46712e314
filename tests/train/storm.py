"""Trainings that are killed: each in a child forked from this process, which has torch in it already.

The parent must not have computed with several threads. Used by tests/train/test_resume.py and
benchmarks/kill_storm.py.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_space.events import Metric
from qlora_space.interruption import Interruption
from qlora_space.model import adapter_sha256
from qlora_space.runs import EventLog, RunFolder, create_run, read_events
from qlora_space.train import train
from tests.train.conftest import demo_plan


@dataclass(frozen=True)
class Outcome:
    """What must not depend on kills."""

    losses: tuple[tuple[int, float], ...]
    eval_losses: tuple[tuple[int, float], ...]
    adapter: str


def small_run(home: Path, **changed: object) -> RunFolder:
    """A few steps on the real quantized base, with dropout, so that generators matter, and many saves."""
    from qlora_space.request import TrainingRequest

    plan = demo_plan(bits=16).model_copy(
        update={
            "max_steps": 6, "eval_steps": 3, "save_steps": 1, "num_samples": 0, "lora_dropout": 0.1,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_rows": 40,
        } | changed
    )  # fmt: skip
    return create_run(home / "runs", TrainingRequest(), plan)


def work(run: RunFolder, deadline_seconds: float | None = None) -> int:
    """One attempt in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        os.dup2(os.open(run.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        interruption, log = Interruption(), EventLog(run.events_file)
        interruption.listen(time.time() + deadline_seconds if deadline_seconds else None)
        log.append(train(run, log.append, None, interruption))
        status = 0
    finally:
        os._exit(status)


def finish(run: RunFolder) -> None:
    """Attempts until one ends by itself. Raises RuntimeError with the log's end if it cannot."""
    _, status = os.waitpid(work(run), 0)
    if status:
        raise RuntimeError(run.log_file.read_text()[-2000:])


def kill_once(run: RunFolder, rng: random.Random, seconds: float) -> int:
    """Kill -9 at a random moment of the first `seconds` of training. Returns the step last told."""
    child = work(run)
    while not any(e.kind == "phase" and e.name == "train" for e in read_events(run.events_file)[0]):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return max(
        (e.step for e in read_events(run.events_file)[0] if isinstance(e, Metric)), default=0
    )


def outcome(run: RunFolder) -> Outcome:
    """Also checks that steps done again gave what they gave before."""
    seen: dict[tuple[str, int], float] = {}
    events, _ = read_events(run.events_file)
    for event in events:
        if not isinstance(event, Metric):
            continue
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            if name in event.values:
                value = seen.setdefault((name, event.step), event.values[name])
                if value != event.values[name]:
                    raise AssertionError(
                        f"{name} of step {event.step}: {value}, then {event.values[name]}"
                    )
    pick = lambda name: tuple(sorted((s, v) for (n, s), v in seen.items() if n == name))  # noqa: E731
    assert [event.seq for event in events] == list(range(len(events)))
    return Outcome(pick("loss"), pick("eval_loss"), adapter_sha256(run.adapter_folder))
