"""A run that is killed, paused or sliced gives the numbers of one that was not, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_space.core.events import Event
from qlora_space.core.interruption import Interruption
from qlora_space.model import adapter_sha256
from qlora_space.runs import EventLog, RunFolder
from qlora_space.train import train
from qlora_space.train.checkpoint import load_checkpoint
from tests.train.small import STEPS, Outcome, events_of, go_on, outcome, small_plan, small_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = small_run(tmp_path_factory.mktemp("reference"))
    go_on(run)
    whole = outcome(run)
    assert list(whole.numbers["loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(whole.numbers["eval_loss"]) == [0, 3, 6]
    assert len(set(whole.numbers["loss"].values())) == STEPS
    return whole


def signal_at(number: int, which: signal.Signals) -> Callable[[], None]:
    """A heartbeat that sends a real signal to this process, once. They come before every forward pass."""
    heartbeats = iter(range(1, 10_000))
    return lambda: signal.raise_signal(which) if next(heartbeats) == number else None


def paused_at(run: RunFolder, heartbeat: int, which: signal.Signals = signal.SIGTERM) -> str:
    """One attempt that hears a signal at this forward pass; returns the kind of its end."""
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGALRM)]
    interruption = Interruption()
    interruption.listen()
    try:
        return go_on(run, interruption, heartbeat=signal_at(heartbeat, which)).kind
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "adapter", [{"use_dora": True, "target_modules": "mlp"}, {"use_rslora": True}]
)
def test_adapters_of_another_kind_go_on_exactly(tmp_path: Path, adapter: dict) -> None:
    whole, broken = (
        small_run(tmp_path / name, small_plan(lora_dropout=0.0, max_steps=3, **adapter)) for name in "ab"
    )  # fmt: skip
    go_on(whole)
    paused_at(broken, 6)
    go_on(broken)
    assert outcome(broken) == outcome(whole)


@pytest.mark.usefixtures("metrics_mode")
@pytest.mark.parametrize("heartbeat", [2, 8])
def test_a_run_that_is_interrupted_inside_a_step_or_an_evaluation_goes_on_exactly(
    reference: Outcome, tmp_path: Path, heartbeat: int
) -> None:
    """Heartbeat 1 is the longest rows, 2 the evaluation of step 0, then two per step and one per evaluation."""
    run = small_run(tmp_path, small_plan(save_steps=0))
    assert paused_at(run, heartbeat) == "paused"
    assert go_on(run).kind == "finished"
    assert outcome(run) == reference
    told = [e.step for e in events_of(run) if e.kind == "metric" and "loss" in e.values]
    assert told == [1, 2, 3, 4, 5, 6]  # none was done twice


@pytest.mark.usefixtures("metrics_mode")
@pytest.mark.slow
@pytest.mark.parametrize("heartbeat", range(1, 21))
@pytest.mark.parametrize("optim", ["adamw_torch", "paged_adamw_8bit"])
def test_every_forward_pass_is_a_place_to_be_interrupted_at(
    tmp_path: Path, optim: str, heartbeat: int
) -> None:
    whole = small_run(tmp_path / "whole", small_plan(optim=optim))
    go_on(whole)
    run = small_run(tmp_path / "broken", small_plan(optim=optim))
    if paused_at(run, heartbeat) == "paused":
        go_on(run)
    assert outcome(run) == outcome(whole)


@pytest.mark.usefixtures("metrics_mode")
def test_slices_of_a_few_forward_passes_are_one_run(reference: Outcome, tmp_path: Path) -> None:
    run, num_slices = small_run(tmp_path), 1
    while paused_at(run, 9, signal.SIGALRM) == "paused":
        num_slices += 1
        assert num_slices < 10
    assert num_slices >= 3
    assert [e.why for e in events_of(run) if e.kind == "paused"] == ["deadline"] * (num_slices - 1)
    assert outcome(run) == reference


@pytest.mark.parametrize("damaged", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_named_and_the_one_before_goes_on_exactly(
    reference: Outcome, tmp_path: Path, damaged: int
) -> None:
    run = small_run(tmp_path)
    assert paused_at(run, 12) == "paused"
    folders = sorted(run.checkpoints_folder.iterdir())
    assert len(folders) == 2
    for folder in folders[-damaged:]:
        os.truncate(folder / "optimizer.safetensors", 1000)
    go_on(run)
    told = [e.text for e in events_of(run) if e.kind == "note" and "damaged" in e.text]
    assert len(told) == damaged
    assert f"{folders[-1].name}: optimizer.safetensors has 1,000 of" in told[0]
    assert outcome(run) == reference


def test_evaluating_less_often_trains_the_same(reference: Outcome, tmp_path: Path) -> None:
    run = small_run(tmp_path, small_plan(eval_steps=100, save_steps=0, num_samples=2))
    go_on(run)
    assert outcome(run).numbers["loss"] == reference.numbers["loss"]
    assert outcome(run).adapter == reference.adapter


def test_a_report_is_never_that_of_an_earlier_adapter(tmp_path: Path) -> None:
    """Stopped with a report, gone on with, and cut off after the new adapter was saved."""
    run = small_run(tmp_path, small_plan(max_steps=2, eval_steps=100))
    log = EventLog(run.events_file)

    def stop_then_cut_off(event: Event) -> None:
        log.append(event)
        if event.kind == "metric" and event.step == 1:
            run.ask_to_stop(keep=True)
        if event.kind == "phase" and event.name == "report" and event.done == event.total:
            run.clear_control_requests()
        if event.kind == "phase" and event.name == "report" and run.resume_step() == 2:
            raise KeyboardInterrupt

    assert train(run, stop_then_cut_off, None).kind == "finished"
    report = run.report()
    assert report is not None
    assert report.adapter_sha256 == adapter_sha256(run.adapter_folder)
    with pytest.raises(KeyboardInterrupt):
        train(run, stop_then_cut_off, None)
    log.close()
    assert adapter_sha256(run.adapter_folder) != report.adapter_sha256
    assert run.report() is None


def test_trying_the_longest_rows_leaves_no_trace(tmp_path: Path) -> None:
    run = small_run(tmp_path, small_plan(max_steps=1, save_steps=0, eval_steps=100))
    go_on(run)
    start = load_checkpoint(run.checkpoints_folder / "step-000000")
    assert not any(bool(t.any()) for name, t in start.adapter.items() if "lora_B" in name)
    assert start.optimizer == {}  # as of an optimizer that has done nothing
    assert start.progress.tokens_seen == 0


def storm(n: int, seed: int) -> dict:
    jobs = str(os.cpu_count())
    command = [sys.executable, "benchmarks/kill_storm.py", "--n", str(n), "--seed", str(seed)]
    command += ["--jobs", jobs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_workers_that_are_killed_anywhere_are_resumed_exactly() -> None:
    assert storm(2, seed=int(time.time()))["exact"] == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_are_survived_some_of_them_inside_a_save() -> None:
    told = storm(50, seed=0)
    assert told["exact"] == 50
    assert told["inside_a_save"] >= 5
