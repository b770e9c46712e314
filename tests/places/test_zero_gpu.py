"""Runs on ZeroGPU: the platform's own library against the API that it expects (tests/fake_zero_gpu.py), real workers,
real forks, a real tiny model."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qlora_space.core.errors import BackendError
from qlora_space.core.events import TERMINAL_KINDS
from qlora_space.core.processes import kill_tree
from qlora_space.places.zero_gpu import ZeroGpuBackend
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder, RunView
from tests.fake_zero_gpu import FakeZeroGpu, running_zero_gpu
from tests.train.small import STEPS, events_of, go_on, outcome, small_plan, small_run

pytestmark = pytest.mark.timeout(3600)
_SECONDS = 1500.0
OWNER = "header.eyJ1c2VyIjogImFsaWNlIn0.signature"  # as the platform writes it


@pytest.fixture
def zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeZeroGpu]:
    with running_zero_gpu() as fake:
        for name, value in fake.environment(tmp_path / "platform").items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def backend() -> Iterator[ZeroGpuBackend]:
    backend = ZeroGpuBackend()
    yield backend
    for worker in backend._children:
        kill_tree(worker.pid, grace_seconds=0)
        worker.wait()


def watched(
    backend: ZeroGpuBackend, run: RunFolder, token: str = OWNER, until: Callable[[RunView], bool] = lambda v: v.is_over
) -> RunView:  # fmt: skip
    """The view when it is over, with a page open all the time."""
    deadline = time.monotonic() + _SECONDS
    while not until(view := backend.view(run)):
        assert time.monotonic() < deadline, run.log_file.read_text()[-3000:]
        backend.keep_going(run, token)
        time.sleep(0.2)
    return view


def slices_of(run: RunFolder) -> list[tuple[int, str]]:
    return [(e.number, e.state) for e in events_of(run) if e.kind == "slice"]


def test_a_run_is_trained_in_one_slice_and_its_owner_pays(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    run = small_run(tmp_path)
    backend.start(run, None)
    view = watched(backend, run)
    assert view.status == "finished", view.failure
    (call,) = zero.calls
    assert call.token == OWNER
    assert not call.failed
    assert slices_of(run) == [(1, "waits_for_gpu"), (1, "runs")]
    assert outcome(run).numbers["loss"].keys() == set(range(1, STEPS + 1))
    assert call.pid != view.pid, "the slice has a process of its own"
    backend._children[0].wait()
    assert not is_there(call.pid), "which ends with the run"


def test_what_is_lent_is_announced_before_the_page_is_up(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    assert backend.hardware(tmp_path).device == "cpu"
    backend.announce()
    assert zero.reports == 1
    hardware = backend.hardware(tmp_path)
    assert hardware.device == "cuda"
    assert hardware.name.endswith("lent by ZeroGPU")
    assert 40 < hardware.free_gib < hardware.memory_gib < 100


def test_a_platform_that_does_not_answer_is_said_in_a_sentence(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACES_ZERO_DEVICE_API_URL", "http://127.0.0.1:9")
    with pytest.raises(BackendError, match="ZeroGPU did not say what it lends"):
        backend.announce()


def busy_plan() -> Plan:
    """About half a second a step on a core that nothing else uses, so longer than four slices of 20 s."""
    return small_plan(
        max_steps=100, gradient_accumulation_steps=16, eval_steps=1000, save_steps=0, save_seconds=5.0
    )  # fmt: skip


@pytest.mark.slow
def test_slices_through_the_platforms_library_are_the_run_without_them_bit_for_bit(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    """At most 20 s are lent at once, and the process of the third slice is killed in its middle."""
    whole = small_run(tmp_path / "whole", busy_plan())
    go_on(whole)
    run = small_run(tmp_path / "sliced", busy_plan())
    zero.most_seconds = 20
    zero.kill_after = [0.0, 0.0, 12.0]
    backend.start(run, None)
    view = watched(backend, run)
    assert view.status == "finished", view.failure
    assert len(zero.calls) >= 5
    assert [call.was_killed for call in zero.calls].count(True) == 1
    assert zero.calls[2].was_killed
    assert len({call.pid for call in zero.calls}) == 2, (
        "all others came to a process that was there"
    )
    assert outcome(run) == outcome(whole)
    kinds = [e.kind for e in events_of(run)]
    assert [k for k in kinds if k in TERMINAL_KINDS] == ["finished"]
    steps = [e.step for e in events_of(run) if e.kind == "metric" and "loss" in e.values]
    seconds = {e.step: e.time for e in events_of(run) if e.kind == "metric"}
    again = sorted({step for step in steps if steps.count(step) > 1})
    assert not again or seconds[again[-1]] - seconds[again[0]] < 12, "no more than one checkpoint's"


@pytest.mark.slow
def test_a_spent_quota_ends_the_attempt_and_the_next_day_goes_on(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    run = small_run(tmp_path, busy_plan())
    zero.left_seconds = {OWNER: 30.0}
    zero.most_seconds = 20
    backend.start(run, None)
    view = watched(backend, run)
    assert (view.status, view.pause and view.pause.why) == ("paused", "quota")
    assert view.pause is not None
    assert "Try again in 5 h 12 min." in view.pause.goes_on
    assert 0 < view.step < 100
    zero.left_seconds = {}
    zero.most_seconds = 300
    backend.start(run, None)
    last = watched(backend, run, until=lambda v: v.attempts == 2 and v.is_over)
    assert last.status == "finished", last


@pytest.mark.slow
def test_nobody_trains_on_when_the_worker_is_killed(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    run = small_run(tmp_path, busy_plan())
    backend.start(run, None)
    view = watched(backend, run, until=lambda v: v.step > 2)
    os.kill(view.pid, signal.SIGKILL)
    backend._children[0].wait()
    deadline = time.monotonic() + 30
    while is_there(zero.calls[0].pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_there(zero.calls[0].pid)
    assert backend.view(run).status == "failed"


@pytest.mark.slow
def test_a_run_that_is_stopped_in_a_slice_keeps_its_adapter(
    zero: FakeZeroGpu, backend: ZeroGpuBackend, tmp_path: Path
) -> None:
    run = small_run(tmp_path, busy_plan())
    backend.start(run, None)
    watched(backend, run, until=lambda v: v.step > 2)
    backend.stop(run, keep=True)
    view = watched(backend, run)
    assert (view.status, view.stopped_by_hand) == ("finished", True)
    assert run.has_adapter


def is_there(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
