"""A run that is cut off in the middle and resumed through the same actions as the page's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_space.app.actions import Actions
from qlora_space.core.errors import RunError
from qlora_space.core.processes import is_alive
from qlora_space.core.request import parse_request
from qlora_space.core.settings import Settings
from qlora_space.places import local
from qlora_space.places.environment import child_environment
from qlora_space.runs import RunFolder, RunView, create_run, list_runs, step_to_resume, view_of
from qlora_space.runs.queue import _locked, machine_lock
from tests.fake_hub import ALICE, FakeHub
from tests.train.small import events_of, go_on, outcome, tiny_base

SHORT = {
    "base": str(tiny_base()), "max_steps": 60, "max_rows": 60, "max_length": 128, "num_samples": 0,
    "save_steps": 2, "eval_fraction": 0.02,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a stop waits for a worker that is still importing: tests/places/test_local.py."""
    monkeypatch.setattr(local, "_STOP_GRACE_SECONDS", 0.5)


def ended(actions: Actions, run: RunFolder) -> RunView:
    deadline = time.monotonic() + 200
    while not (view := actions.view(run)).is_over:
        assert time.monotonic() < deadline, run.log_file.read_text()[-2000:]
        time.sleep(0.05)
    return view


def test_a_killed_run_is_resumed_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    actions = Actions(Settings(home=tmp_path))
    broken = actions.start(parse_request(SHORT))
    while (broken.resume_step() or 0) < 2:
        assert not actions.view(broken).is_over
        time.sleep(0.01)
    os.kill(actions.view(broken).pid, signal.SIGKILL)
    view = ended(actions, broken)
    assert view.status == "failed"
    step = step_to_resume(broken, view)
    assert step
    assert view.failure is not None
    assert f"Resume goes on from step {step}" in view.failure.hint
    actions.resume(broken)
    with pytest.raises(RunError, match="it is still running"):
        actions.resume(broken)
    view = ended(actions, broken)
    assert (view.status, view.attempts) == ("finished", 2)
    unbroken = create_run(tmp_path / "runs", broken.request(), broken.plan())
    go_on(unbroken)
    assert outcome(broken) == outcome(unbroken)
    with pytest.raises(RunError, match="cannot be resumed"):
        actions.resume(broken)
    actions.close()


def test_a_run_that_waited_through_a_restart_of_the_machine_is_started_again(
    tmp_path: Path,
) -> None:
    actions = Actions(Settings(home=tmp_path))
    with _locked(machine_lock(actions.settings.runs_folder)):
        run = actions.start(parse_request(SHORT | {"max_steps": 1}))
        while (view := actions.view(run)).status != "queued" or not view.attempts:
            assert not view.is_over
            time.sleep(0.02)
        os.kill(view.pid, signal.SIGKILL)
        view = ended(actions, run)
    assert view.failure is not None
    assert "while it waited for its turn" in view.failure.cause
    assert "Start it again" in view.failure.hint
    assert step_to_resume(run, view) == 0
    actions.resume(run)
    while actions.view(run).phase is None:
        assert not actions.view(run).is_over
        time.sleep(0.05)
    assert actions.view(run).status == "preparing"
    actions.stop(run, keep=False)
    assert ended(actions, run).status == "cancelled"
    actions.close()


@pytest.mark.slow
def test_a_run_whose_machine_is_lost_goes_on_exactly_on_another_one(
    tmp_path: Path, hub: FakeHub
) -> None:
    lost, other = (Actions(Settings(home=tmp_path / name)) for name in ("lost", "other"))
    whole = other.start(parse_request(SHORT), None)
    assert ended(other, whole).status == "finished"
    run = lost.start(parse_request(SHORT | {"mirror_to": "alice/copy"}), ALICE)
    while (run.resume_step() or 0) < 4:
        assert not lost.view(run).is_over
        time.sleep(0.01)
    os.kill(lost.view(run).pid, signal.SIGTERM)
    paused = ended(lost, run)
    while is_alive(paused.pid, paused.pid_start_time):
        time.sleep(0.05)
    lost.close()
    shutil.rmtree(tmp_path / "lost")
    back = other.fetch("alice/copy", ALICE)
    view = other.view(back)
    assert (back.id, view.status, view.step) == (run.id, "paused", paused.step)
    assert paused.step >= 4
    other.resume(back, ALICE)
    finished = ended(other, back)
    assert finished.status == "finished"
    while is_alive(finished.pid, finished.pid_start_time):  # its last copy is under way
        time.sleep(0.05)
    assert outcome(back) == outcome(whole)
    assert ALICE not in "".join(p.read_text("latin-1") for p in back.path.rglob("*") if p.is_file())
    other.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_in_slices_by_the_clock_is_the_demo_in_one_piece(tmp_path: Path) -> None:
    """Real workers with real deadlines; one that did not get a step further is followed by a longer one."""
    command_line(tmp_path, "train", "--preset", "quick")
    (whole,) = list_runs(tmp_path / "runs")
    events = events_of(whole)
    began = next(e.time for e in events if e.kind == "phase" and e.name == "train")
    seconds = began - events[0].time + (events[-1].time - began) / 8
    sliced, ends, reached = create_run(tmp_path / "runs", whole.request(), whole.plan()), [75], 0
    while ends[-1] == 75:
        command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(sliced.path)]
        command += ["--deadline-seconds", str(seconds)]
        done = subprocess.run(command, env=child_environment(), capture_output=True, check=False)
        ends.append(done.returncode)
        before, reached = reached, sliced.resume_step() or 0
        seconds *= 1 if reached > before else 1.5
    assert ends[-1] == 0
    assert len(ends) > 5, "the first is not a slice"
    steps = [e.step for e in events_of(sliced) if e.kind == "metric" and "loss" in e.values]
    assert steps == list(range(1, view_of(whole).total_steps + 1))
    assert outcome(sliced) == outcome(whole)
    (shown,) = command_line(tmp_path, "runs", "show", sliced.id)["runs"]
    assert shown["status"] == "finished"


def command_line(home: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "qlora_space", *arguments, "--json"]
    environment = os.environ | {"QLORA_SPACE_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_request_that_is_pressed_twice_is_one_run(tmp_path: Path) -> None:
    actions = Actions(Settings(home=tmp_path))
    request = parse_request(SHORT | {"max_steps": 500})
    run = actions.start(request)
    assert actions.start(request) == run
    assert [found for found, _ in actions.runs()] == [run]
    actions.stop(run, keep=False)
    assert ended(actions, run).status == "cancelled"
    actions.delete(run)
    actions.close()
