"""A visitor's run goes where it was asked to, or is refused in a sentence and leaves nothing behind."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_space.app.following import follow_jobs, runs_in_jobs
from qlora_space.app.placing import JobPrices
from qlora_space.core.errors import HubError, QloraSpaceError, RequestError, RunError
from qlora_space.core.limits import Limits
from qlora_space.core.places import Flavor
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import ANONYMOUS, Visitor
from qlora_space.places.jobs import is_followed
from qlora_space.runs import view_of
from qlora_space.runs.folder import list_runs
from tests.app.ui.fake import FakeActions
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.places.scripted_job import CODE, L4, ScriptedJob

HER = Visitor("hub:alice", ALICE, name="alice", scope="openid contribute-repos jobs")
JOB = TrainingRequest(dataset="alice/rows", base="Qwen/Qwen3-8B", place="job")


@pytest.fixture
def space(tmp_path: Path, hub: FakeHub) -> Iterator[FakeActions]:
    hub.add_space(CODE, {"qlora_space/places/job_entry.py": "", "requirements.txt": ""})
    limits = Limits(live_runs=9, waiting_runs=9, min_free_gib=0)
    settings = Settings(home=tmp_path, is_space=True, limits=limits, job_code=CODE)
    made = FakeActions(settings, step_seconds=30.0, num_steps=5)
    yield made
    for job in hub.jobs.values():
        job.end("CANCELED")
    for child in made.jobs._children:
        child.kill()
        child.wait()


def until(what: object, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_starts_on_the_cheapest_machine_with_a_private_copy_and_is_followed_to_its_end(
    space: FakeActions, hub: FakeHub, tmp_path: Path
) -> None:
    her = space.for_visitor(HER)
    run = her.start(JOB)
    (job,) = hub.jobs.values()
    best = min((o for o in run.plan().places if o.kind == "job"), key=lambda o: o.usd)
    assert job.spec["flavor"] == best.flavor
    copy = hub.repo("model", run.request().mirror_to or "")
    assert copy.private
    assert copy.id.startswith("alice/")
    assert her.view(run).status == "queued"
    until(lambda: is_followed(run))
    there = ScriptedJob(job, tmp_path / "there")
    there.train(1, 9)
    there.finish()
    until(lambda: her.view(run).is_over)
    assert her.view(run).status == "finished"
    assert run.has_adapter
    assert not runs_in_jobs(her)
    assert her.jobs.price(run) >= 0


def test_a_run_in_a_job_holds_back_no_run_here(
    space: FakeActions, hub: FakeHub, tmp_path: Path
) -> None:
    her = space.for_visitor(HER)
    away = her.start(JOB)
    there = ScriptedJob(next(iter(hub.jobs.values())), tmp_path / "there")
    there.train(1, 3)
    until(lambda: view_of(away).step == 3)
    here = her.start(TrainingRequest())
    until(lambda: view_of(here).status != "queued")
    assert her.busy_name() == here.name()
    assert her.queue_positions() == {}


@pytest.mark.parametrize(
    ("why", "sentence"),
    [
        ("credit", "no credit for HF Jobs"),
        ("scope", "does not include HF Jobs"),
        ("code", "It is not known from where a job gets this program"),
        ("hub", "could not be started"),
        ("ends", "Your sign-in ends too soon"),
    ],
)
def test_a_job_that_cannot_start_says_why_and_leaves_nothing(
    space: FakeActions, hub: FakeHub, why: str, sentence: str
) -> None:
    visitor = HER
    if why == "credit":
        hub.job_credit = False
    elif why == "scope":
        visitor = replace(HER, scope="openid contribute-repos")
    elif why == "code":
        space.jobs._code = ""
    elif why == "hub":
        hub.fail(503, path="/api/jobs/alice$", method="POST", times=9)
    else:
        visitor = replace(HER, expires_at=time.time() + 700)
    with pytest.raises(QloraSpaceError, match=sentence):
        space.for_visitor(visitor).start(JOB)
    assert list_runs(space.settings.runs_folder) == []
    assert not hub.jobs


def test_a_run_that_is_in_a_job_is_never_paid_twice(space: FakeActions, hub: FakeHub) -> None:
    """A second press, another tab, and those who attach while it is submitted."""
    her = space.for_visitor(HER)
    run = her.start(JOB)
    with pytest.raises(RunError, match="in a job already"):
        her.jobs.start(run, ALICE)
    assert her.jobs.attach(run, ALICE) is False, "its follower is about to take it"
    with her.jobs._alone_with(run):
        assert her.jobs.attach(run, ALICE) is False
        with pytest.raises(RunError, match="on its way"):
            her.jobs.start(run, ALICE)
    assert len(hub.jobs) == 1


def test_a_job_that_the_hub_took_before_it_failed_to_say_so_is_followed(
    space: FakeActions, hub: FakeHub
) -> None:
    hub.fail("lose", path="/jobs/alice", method="POST")
    run = space.for_visitor(HER).start(JOB)
    (job,) = hub.jobs.values()
    kept = run.job()
    assert kept is not None
    assert (kept.id, kept.is_over) == (job.id, False)


def test_a_job_is_paid_by_who_starts_it(space: FakeActions, hub: FakeHub) -> None:
    for repo in ("wonderland/copy", "copy"):
        with pytest.raises(RequestError, match="paid by alice"):
            space.for_visitor(HER).start(JOB.model_copy(update={"mirror_to": repo}))
    assert not hub.jobs


def test_a_stop_that_was_asked_for_outlives_a_new_follower(
    space: FakeActions, hub: FakeHub
) -> None:
    run = space.for_visitor(HER).start(JOB)
    run.ask_to_stop(keep=True)
    for child in space.jobs._children:
        child.kill()
        child.wait()
    assert space.jobs.attach(run, ALICE)
    assert run.stop_request() == "keep"


def test_a_job_ends_before_the_sign_in_that_it_was_given(space: FakeActions, hub: FakeHub) -> None:
    left = 1800
    visitor = replace(HER, expires_at=time.time() + left)
    run = space.for_visitor(visitor).start(JOB)
    (job,) = hub.jobs.values()
    assert job.spec["timeoutSeconds"] <= left - 600
    assert run.plan().offer is not None


def test_a_run_that_nobody_follows_is_followed_when_its_owner_comes_and_by_nobody_else(
    space: FakeActions, hub: FakeHub, tmp_path: Path
) -> None:
    her = space.for_visitor(HER)
    run = her.start(JOB)
    (job,) = hub.jobs.values()
    until(lambda: is_followed(run))
    for child in space.jobs._children:  # as when the Space was restarted
        child.kill()
        child.wait()
    there = ScriptedJob(job, tmp_path / "there")
    there.train(1, 9)
    there.finish()
    restarted = FakeActions(space.settings)
    assert follow_jobs(restarted.for_visitor(ANONYMOUS)) == 0
    assert follow_jobs(restarted.for_visitor(Visitor("hub:bob", BOB, name="bob"))) == 0
    assert not view_of(run).is_over
    assert follow_jobs(restarted.for_visitor(HER)) == 1
    until(lambda: view_of(run).status == "finished")
    assert run.events_file.read_bytes() == there.run.events_file.read_bytes()


def test_a_server_that_ended_while_it_submitted_a_job_finds_it_or_says_that_there_is_none(
    space: FakeActions, hub: FakeHub
) -> None:
    her = space.for_visitor(HER)
    run = her.start(JOB)
    until(lambda: is_followed(run))
    for child in space.jobs._children:
        child.kill()
        child.wait()
    record = run.job()
    assert record is not None
    run.keep_job(record.model_copy(update={"id": "pending", "submitted_at": 0.0}))
    assert follow_jobs(her) == 1
    assert run.job().id == record.id  # type: ignore[union-attr]
    until(lambda: is_followed(run))
    assert follow_jobs(her) == 0, "it is followed now"
    space.jobs._children[-1].kill()
    space.jobs._children[-1].wait()
    hub.jobs.clear()
    run.keep_job(record.model_copy(update={"id": "pending"}))
    assert follow_jobs(her) == 0
    failure = view_of(run).failure
    assert failure is not None
    assert "while it submitted the job" in failure.cause


def test_a_stop_of_a_run_that_nobody_follows_reaches_its_job(
    space: FakeActions, hub: FakeHub
) -> None:
    her = space.for_visitor(HER)
    run = her.start(JOB)
    (job,) = hub.jobs.values()
    until(lambda: is_followed(run))
    for child in space.jobs._children:
        child.kill()
        child.wait()
    her.stop(run, keep=False)
    until(lambda: job.stage == "CANCELED")
    until(lambda: view_of(run).status == "cancelled")


def test_another_visitors_job_is_unknown(space: FakeActions) -> None:
    run = space.for_visitor(HER).start(JOB)
    bob = space.for_visitor(Visitor("hub:bob", BOB, name="bob"))
    for do in (lambda: bob.stop(run, keep=False), lambda: bob.resume(run, JOB)):
        with pytest.raises(RunError, match="There is no run"):
            do()
    assert not (run.path / "discard").exists()


def test_prices_are_asked_for_once_and_stay_when_the_hub_fails() -> None:
    asked: list[str | None] = []

    def ask(token: str | None) -> tuple[Flavor, ...]:
        asked.append(token)
        if len(asked) > 1:
            raise HubError("The Hub does not answer.", "")
        return (L4,)

    prices = JobPrices(ask)
    assert [prices.machines() for _ in range(3)] == [(L4,)] * 3
    assert asked == [None]
    prices._until = 0.0
    assert prices.machines() == (L4,)
    assert len(asked) == 2


def test_a_machine_that_nobody_offers_is_refused_in_the_plan(space: FakeActions) -> None:
    with pytest.raises(RequestError, match="which HF Jobs does not offer"):
        space.for_visitor(HER).plan(JOB.model_copy(update={"flavor": "abacus"}))
