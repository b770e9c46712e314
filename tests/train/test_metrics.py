"""Seconds and tokens per second from step to step, on a clock that is set by hand; memory."""

import os

import pytest
import torch

from qlora_space.train import metrics
from qlora_space.train.metrics import Throughput
from tests.core.test_machine import Card, plug_in


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


def test_what_is_done_between_steps_is_not_counted(clock: Clock) -> None:
    it = Throughput()
    it.start_step(tokens_seen=50)
    clock.now += 2
    assert it.end_step(tokens_seen=150) == 2
    clock.now += 4
    assert it.end_step(tokens_seen=250) == 4
    assert it.tokens_per_second == 25
    clock.now += 60  # an evaluation, with no step under way
    it.start_step(tokens_seen=250)
    clock.now += 1
    assert it.end_step(tokens_seen=350) == 1


def test_an_evaluation_during_a_step_is_not_counted_as_the_steps_time(clock: Clock) -> None:
    it = Throughput()
    it.start_step(tokens_seen=0)
    clock.now += 2
    it.end_step(tokens_seen=100)
    clock.now += 60  # of which its first 3 seconds belong to the step
    it.start_step(tokens_seen=100, spent_seconds=3)
    clock.now += 1
    assert it.end_step(tokens_seen=300) == 4
    assert it.tokens_per_second == 50


def test_the_throughput_of_short_steps_is_averaged_over_a_second(clock: Clock) -> None:
    """One is reported late and the next at once: neither is as slow or as fast as that."""
    it = Throughput()
    it.start_step(tokens_seen=0)
    for step in range(1, 41):
        clock.now += 0.2 if step % 2 else 0.05
        it.end_step(tokens_seen=100 * step)
        if step > 10:
            assert it.tokens_per_second == pytest.approx(800, rel=0.15)
    clock.now += 4
    it.end_step(tokens_seen=4100)
    assert it.tokens_per_second == 25


@pytest.mark.parametrize(
    ("processes", "context_gib"),
    [(((os.getpid(), 5 * 2**30),), 2.0), ((), 0.51)],  # what NVML says, or as on an H200
)
def test_memory_counts_what_cuda_holds_beside_tensors(
    monkeypatch: pytest.MonkeyPatch, processes: tuple, context_gib: float
) -> None:
    monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", ""
    )  # no test sees a GPU; this one a driver that is made up
    plug_in(monkeypatch, Card("GPU-a", processes=processes))
    torch_gib = {"memory_allocated": 1, "max_memory_allocated": 2, "memory_reserved": 3}
    for name, size in torch_gib.items():
        monkeypatch.setattr(torch.cuda, name, lambda size=size: size * 2**30)
    metrics._context_gib.cache_clear()
    try:
        found = [
            read("cuda")
            for read in (metrics.memory_now_gib, metrics.memory_peak_gib, metrics.card_gib)
        ]
    finally:
        metrics._context_gib.cache_clear()
    assert found == pytest.approx([1 + context_gib, 2 + context_gib, 3 + context_gib])


def test_on_a_cpu_all_memory_is_that_of_the_process() -> None:
    now = metrics.memory_now_gib("cpu")
    assert metrics.card_gib("cpu") == pytest.approx(now, rel=0.1)
    assert metrics.memory_peak_gib("cpu") >= 0.9 * now > 0
