"""A run in a job, by real processes on both sides of the fake Hub: it trains, is stopped, moves and comes back."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_space.app.actions import Actions
from qlora_space.app.following import follow_jobs
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.hub.deploy import SpaceSettings, deploy
from qlora_space.places.jobs import is_followed
from qlora_space.runs import RunFolder, view_of
from tests.fake_hub import ALICE, FakeHub
from tests.places.real_job import runs_commands
from tests.test_space_versions import space_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SMALL = TrainingRequest(
    max_rows=40, max_length=256, max_steps=12, eval_fraction=0.2, num_samples=1, learning_rate=1e-3
)
JOB = SMALL.model_copy(update={"place": "job", "flavor": "cpu-basic", "max_usd": 1.0})


@pytest.fixture
def hub_with_code(hub: FakeHub) -> FakeHub:
    deploy("alice/app", SpaceSettings(), ALICE)
    return hub


@pytest.fixture
def actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_with_code: FakeHub
) -> Iterator[Actions]:
    monkeypatch.setenv("HF_TOKEN", ALICE)  # this machine's user
    made = Actions(Settings(home=tmp_path / "home", job_code="alice/app"))
    yield made
    made.close()
    for job in hub_with_code.jobs.values():
        job.end("CANCELED")
        job.on_cancel()


def over(run: RunFolder, seconds: float = 900) -> str:
    return until(lambda: view_of(run).is_over, seconds) and view_of(run).status


def until(what: Callable[[], object], seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return True


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return list(view_of(run).series("loss"))


def test_a_run_in_a_job_is_the_run_that_it_would_be_here(
    actions: Actions, hub_with_code: FakeHub, tmp_path: Path
) -> None:
    """The server is restarted in the middle, and its follower is killed with it."""
    here = actions.start(SMALL)
    assert over(here) == "finished"
    hub_with_code.job_runner = runs_commands(hub_with_code, tmp_path / "jobs")
    run = actions.start(JOB)
    until(lambda: view_of(run).step >= 2)
    for child in actions.jobs._children:
        child.kill()
        child.wait()
    assert not is_followed(run)
    restarted = Actions(actions.settings)
    assert follow_jobs(restarted) == 1
    assert follow_jobs(restarted) in (0, 1), "a second one finds the first, or ends by itself"
    assert over(run) == "finished", view_of(run).failure
    assert losses(run) == losses(here)
    name = "adapter_model.safetensors"
    assert (run.adapter_folder / name).read_bytes() == (here.adapter_folder / name).read_bytes()
    assert run.report() is not None
    seqs = [int(line.split(b'"seq":')[1].split(b",")[0]) for line in run.events_file.open("rb")]
    assert seqs == list(range(len(seqs)))
    assert ALICE not in "".join(
        str(line) for line, _ in next(iter(hub_with_code.jobs.values())).log
    )


def test_a_run_that_moves_there_and_back_has_the_losses_of_one_that_stayed(
    actions: Actions, hub_with_code: FakeHub, tmp_path: Path
) -> None:
    here = actions.start(SMALL)
    assert over(here) == "finished"
    fast = {"QLORA_SPACE_JOB_ASK_SECONDS": "0.2"}
    hub_with_code.job_runner = runs_commands(hub_with_code, tmp_path / "jobs", **fast)
    run = actions.start(SMALL.model_copy(update={"save_steps": 1, "save_seconds": 1e6}))
    until(lambda: view_of(run).step >= 3)
    actions.stop(run, keep=True)
    assert over(run) == "finished"
    before = run.resume_step()
    assert before
    assert before < 12
    actions.resume(run, JOB)
    until(lambda: view_of(run).step >= before + 2)
    assert run.is_in_job
    actions.stop(run, keep=True)
    assert over(run) == "finished", view_of(run).failure
    there = run.resume_step()
    assert there
    assert before < there < 12
    actions.resume(run, SMALL)
    assert not run.is_in_job
    assert over(run) == "finished", view_of(run).failure
    assert losses(run) == losses(here)
    name = "adapter_model.safetensors"
    assert (run.adapter_folder / name).read_bytes() == (here.adapter_folder / name).read_bytes()


def test_a_job_whose_time_is_up_saves_and_can_go_on(
    actions: Actions, hub_with_code: FakeHub, tmp_path: Path
) -> None:
    hub_with_code.job_runner = runs_commands(hub_with_code, tmp_path / "jobs")
    long = JOB.model_copy(update={"max_steps": 5000})
    asked = long.model_copy(update={"max_usd": None})
    plan = actions.plan(asked)
    assert plan.offer is not None
    short = plan.offer.model_copy(update={"timeout_seconds": 40})
    original = Actions.plan
    try:
        Actions.plan = lambda self, request: original(self, request).model_copy(  # type: ignore[method-assign]
            update={"offer": short}
        )
        run = actions.start(asked)
    finally:
        Actions.plan = original  # type: ignore[method-assign]
    assert over(run) == "paused"
    assert "time is up" in view_of(run).notes[-1].text
    (job,) = hub_with_code.jobs.values()
    assert job.stage == "COMPLETED", "it ended by itself, before it was ended"


def test_the_command_of_a_job_runs_with_nothing_but_what_a_job_has(
    actions: Actions, hub_with_code: FakeHub, tmp_path: Path
) -> None:
    """A fresh environment, in which it installs everything itself, from a Space's requirements."""
    venv = tmp_path / "venv"
    subprocess.run([space_python(), "-m", "venv", venv], check=True)
    hub_with_code.job_runner = runs_commands(
        hub_with_code, tmp_path / "jobs", python=venv / "bin" / "python"
    )
    run = actions.start(JOB)
    assert over(run, 3000) == "finished", view_of(run).failure
    (job,) = hub_with_code.jobs.values()
    assert job.stage == "COMPLETED"
    assert run.has_adapter
    assert [name for name, repo in hub_with_code.repos if name == "model"] == ["model"]
    assert ALICE not in "".join(line for line, _ in job.log)
