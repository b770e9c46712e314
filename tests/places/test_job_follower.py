"""A run in a job looks as one that runs here: its events, its files and its end come whole, whatever is between."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from qlora_space.core.events import Cancelled, Event, Failed, Paused
from qlora_space.places.job_follower import Patience, follow_job
from qlora_space.places.owner_token import OwnerToken
from qlora_space.runs import RunFolder, view_of
from tests.fake_hub import ALICE, FakeHub
from tests.fake_jobs import Job
from tests.places.scripted_job import REPO, ScriptedJob, run_for_a_job, submitted

QUICK = Patience(ask=0.2, wait=0.1, most_wait=0.2, keep=0.5, drain=2.0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_for_a_job(tmp_path / "here")


@pytest.fixture
def job(run: RunFolder, hub: FakeHub) -> Job:
    return submitted(run, hub)


class Following:
    """It follows in a thread, as its own process does."""

    def __init__(self, run: RunFolder, token: str = ALICE, patience: Patience = QUICK) -> None:
        self.token = OwnerToken(token)
        self._thread = threading.Thread(target=follow_job, args=(run, self.token, patience))
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def there(job: Job, tmp_path: Path) -> ScriptedJob:
    return ScriptedJob(job, tmp_path / "there")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_was_submitted_waits_for_its_machine(run: RunFolder, job: Job) -> None:
    view = view_of(run)
    assert (view.status, view.pid) == ("queued", 0)
    assert view.stalled_for(time.time() + 3600) == "", "nobody is to report yet"
    assert job.spec["secrets"] == {"HF_TOKEN": ALICE}
    assert ALICE not in str({k: v for k, v in job.spec.items() if k != "secrets"})
    assert job.spec["timeoutSeconds"] == run.plan().offer.timeout_seconds  # type: ignore[union-attr]
    assert job.labels["qlora-space-run"] == run.id
    assert ALICE not in "".join(f.read_text() for f in run.path.iterdir() if f.is_file())


def test_a_finished_job_leaves_the_files_and_events_of_a_run_here(
    run: RunFolder, there: ScriptedJob
) -> None:
    following = Following(run)
    there.train(1, 4)
    there.save(4)
    there.train(5, 9)
    wait_for(lambda: view_of(run).step == 9)
    there.finish()
    following.join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()
    assert view_of(run).status == "finished"
    assert run.adapter_folder.joinpath("adapter_model.safetensors").read_bytes() == b"learned"
    assert run.resume_step() == 4
    assert run.job().is_over  # type: ignore[union-attr]
    assert "Successfully installed torch" in run.log_file.read_text()


def test_the_end_is_seen_only_when_everything_is_here(
    run: RunFolder, there: ScriptedJob, hub: FakeHub
) -> None:
    following = Following(run)
    there.train(1, 9)
    hub.fail(503, path=f"/{REPO}/resolve/", method="GET", times=3)
    there.finish()
    while not view_of(run).is_over:
        time.sleep(0.005)
    assert run.has_adapter
    following.join()


@pytest.mark.parametrize("after", [(1, 5, 8), pytest.param(range(1, 12), marks=pytest.mark.slow)])
def test_a_log_that_breaks_off_after_any_line_has_no_gap_and_nothing_twice(
    run: RunFolder, there: ScriptedJob, hub: FakeHub, after: Iterable[int]
) -> None:
    there.train(1, 6)
    hub.log_drops = list(after)
    following = Following(run)
    there.train(7, 9)
    wait_for(lambda: not hub.log_drops)
    there.finish()
    following.join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()
    assert run.log_file.read_text().count("Successfully installed torch") == 1


def test_a_log_that_breaks_off_when_the_job_is_over_is_made_up_for_by_the_copy(
    run: RunFolder, there: ScriptedJob, hub: FakeHub
) -> None:
    """The client does not read it again then."""
    there.train(1, 9)
    there.finish()
    hub.log_drops = [5]
    Following(run).join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()


@pytest.mark.parametrize("kind", [500, 503, "drop"])
def test_a_log_that_cannot_be_read_for_a_while_is_read_again_from_its_first_line(
    run: RunFolder, there: ScriptedJob, hub: FakeHub, kind: int | str
) -> None:
    there.train(1, 6)
    hub.fail(kind, path="/logs$", times=2)  # type: ignore[arg-type]
    following = Following(run)
    there.train(7, 9)
    wait_for(lambda: view_of(run).step == 9)
    there.finish()
    following.join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()
    assert run.log_file.read_text().count("Successfully installed torch") == 1


def test_events_that_the_log_has_lost_come_through_the_copy(
    run: RunFolder, there: ScriptedJob
) -> None:
    there.train(1, 9)
    del there.job.log[4:7]
    there.finish()
    Following(run).join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()


def test_who_follows_anew_goes_on_where_the_last_one_ended(
    run: RunFolder, there: ScriptedJob
) -> None:
    """A follower that was killed left the events that it had written, and half a line."""
    there.train(1, 5)
    known = there.run.events_file.read_bytes().splitlines(keepends=True)
    with run.events_file.open("ab") as file:
        file.write(b"".join(known[2:5]) + known[5][:20])
    with run.log_file.open("a") as log:
        log.write(f"=== job {there.job.id}\n| \n| Successfully installed torch\n")
    following = Following(run)
    there.train(6, 9)
    there.job.say("worker: later")
    there.finish()
    following.join()
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()
    assert run.log_file.read_text().count("Successfully installed torch") == 1
    assert "| worker: later" in run.log_file.read_text()


@pytest.mark.parametrize(
    "end",
    [
        Failed(cause="The loss is not a number.", hint="Lower the rate."),
        Paused(step=4, why="deadline"),
        Cancelled(step=4),
    ],
)
def test_every_end_of_a_run_is_the_end_of_its_job(
    run: RunFolder, there: ScriptedJob, end: Event
) -> None:
    there.train(1, 4)
    there.save(4)
    there.finish(end)
    Following(run).join()
    assert view_of(run).status == end.kind
    assert run.resume_step() == (None if end.kind == "cancelled" else 4)


def test_a_stop_asks_the_job_to_save_and_end_by_a_label(run: RunFolder, there: ScriptedJob) -> None:
    following = Following(run, patience=Patience(ask=0.2, wait=0.1, keep=60))
    there.train(1, 4)
    run.ask_to_stop(keep=True)
    wait_for(lambda: there.job.labels.get("ask", "").startswith("keep-"))
    assert there.job.labels["qlora-space-run"] == run.id
    assert there.job.stage == "RUNNING"
    there.finish()
    following.join()
    assert view_of(run).status == "finished"


def test_a_job_that_does_not_stop_when_it_is_asked_is_cancelled_and_can_go_on_from_its_copy(
    run: RunFolder, there: ScriptedJob
) -> None:
    there.train(1, 4)
    there.save(4)
    there.copy()
    following = Following(run)
    run.ask_to_stop(keep=True)
    following.join()
    assert there.job.stage == "CANCELED"
    assert view_of(run).status == "paused"
    assert run.resume_step() == 4


def test_with_nothing_to_keep_the_job_is_cancelled_at_once(
    run: RunFolder, there: ScriptedJob
) -> None:
    there.save(4)
    there.copy()
    following = Following(run, patience=Patience(ask=0.2, wait=0.1, keep=60))
    run.ask_to_stop(keep=False)
    following.join()
    assert there.job.stage == "CANCELED"
    assert view_of(run).status == "cancelled"
    assert run.resume_step() is None


def test_a_stop_before_the_job_has_its_machine_cancels_it(run: RunFolder, job: Job) -> None:
    following = Following(run)
    run.ask_to_stop(keep=True)
    following.join()
    assert job.stage == "CANCELED"
    view = view_of(run)
    assert view.status == "failed"
    assert view.failure is not None
    assert "cancelled" in view.failure.cause


def test_save_now_and_sample_now_reach_the_job(run: RunFolder, there: ScriptedJob) -> None:
    following = Following(run)
    for name in ("save", "sample"):
        run.ask_for(name)  # type: ignore[arg-type]
        wait_for(lambda: there.job.labels.get("ask", "").startswith(name))  # noqa: B023
        assert not (run.path / name).exists()
    there.finish()
    following.join()


@pytest.mark.parametrize(
    ("stage", "message", "running_seconds", "cause"),
    [
        ("ERROR", "OOMKilled", 30, "HF Jobs says ERROR (“OOMKilled”)"),
        ("CANCELED", None, 30, "The job was cancelled"),
        ("COMPLETED", None, 30, "HF Jobs says COMPLETED"),
        ("ERROR", "timeout", 10**6, "the time that it was given"),
    ],
)
def test_a_job_that_ended_without_a_word_is_explained(
    run: RunFolder,
    there: ScriptedJob,
    stage: str,
    message: str | None,
    running_seconds: int,
    cause: str,
) -> None:
    there.save(4)
    there.copy()
    there.job.started_at = time.time() - running_seconds
    there.job.say("worker: Killed")
    there.job.end(stage, message)
    Following(run).join()
    failure = view_of(run).failure
    assert failure is not None
    assert cause in failure.cause
    assert "Resume goes on from step 4" in failure.hint


def test_a_job_that_the_hub_has_forgotten_is_over(
    run: RunFolder, there: ScriptedJob, hub: FakeHub
) -> None:
    there.train(1, 2)
    following = Following(run)
    wait_for(lambda: view_of(run).step == 2)
    hub.jobs.clear()
    there.job.end("DELETED")
    following.join()
    assert "DELETED" in view_of(run).failure.cause  # type: ignore[union-attr]


def test_a_sign_in_that_has_ended_is_waited_for(
    run: RunFolder, there: ScriptedJob, hub: FakeHub
) -> None:
    user = hub.users.pop(ALICE)
    hub.users["hf_newTokenOfAliceForTestsOnly"] = user
    following = Following(run)
    there.emit()
    time.sleep(0.5)
    assert not view_of(run).is_over
    following.token._renewed("")
    following.token.newest = "hf_newTokenOfAliceForTestsOnly"
    hub.users[ALICE] = user  # of the job itself
    there.train(1, 9)
    there.finish()
    del hub.users[ALICE]
    following.join()
    assert view_of(run).status == "finished"


def test_two_do_not_follow_one_run(run: RunFolder, there: ScriptedJob) -> None:
    """Of two processes; of one process the lock is not asked."""
    there.finish()
    Following(run).join()
    assert follow_job(run, OwnerToken(ALICE), QUICK) == 0
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()


@pytest.fixture(autouse=True)
def no_leftovers(hub: FakeHub) -> Iterator[None]:
    yield
    for job in hub.jobs.values():
        job.end("DELETED")
