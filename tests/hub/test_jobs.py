"""HF Jobs by the real client: prices as values, refusals as sentences."""

import pytest

from qlora_space.core.errors import HubError, HubUnavailable
from qlora_space.hub.jobs import (
    JobSpec,
    ask_job,
    cancel_job,
    job_flavors,
    job_log,
    job_state,
    may_run_jobs,
    pinned_code,
    submit_job,
    submitted_job,
)
from tests.fake_hub import ALICE, BOB, CAROL, FakeHub

SPEC = JobSpec(
    namespace="alice",
    image="python:3.12",
    command=("python", "-c", "pass"),
    flavor="l4x1",
    timeout_seconds=600,
    environment={"A": "1"},
    secrets={"HF_TOKEN": ALICE},
    labels={"run": "abc"},
)


def test_machines_come_with_memory_and_price_by_the_hour_without_a_sign_in(hub: FakeHub) -> None:
    found = {machine.name: machine.hardware for machine in job_flavors(None)}
    assert found["l4x1"].price_per_hour_usd == pytest.approx(0.80, abs=0.001)
    assert (found["l4x4"].num_gpus, found["l4x1"].num_gpus) == (4, 1)
    assert found["l4x4"].memory_gib == found["l4x1"].memory_gib
    assert found["cpu-basic"].device == "cpu"
    assert found["h200"].memory_gib > 130


def test_a_job_is_submitted_read_asked_and_cancelled(hub: FakeHub) -> None:
    state = submit_job(SPEC, ALICE)
    job = hub.jobs[state.id]
    assert job.spec["timeoutSeconds"] == 600
    assert job.spec["secrets"] == {"HF_TOKEN": ALICE}
    assert state.url.endswith(f"/jobs/alice/{state.id}")
    job.run()
    job.say("one", "two")
    ask_job("alice", state.id, "keep-1", ALICE)
    assert job_state("alice", state.id, ALICE).labels == {
        "run": "abc",
        "name": job.labels["name"],
        "ask": "keep-1",
    }
    found = submitted_job("alice", {"run": "abc"}, ALICE)
    assert found is not None
    assert found.id == state.id
    cancel_job("alice", state.id, ALICE)
    cancel_job("alice", state.id, ALICE)
    assert job_state("alice", state.id, ALICE).is_over
    assert list(job_log("alice", state.id, ALICE)) == ["one", "two"]


def test_an_account_without_credit_is_told_where_to_get_some(hub: FakeHub) -> None:
    hub.job_credit = False
    with pytest.raises(HubError, match=r"no credit for HF Jobs\. Add some at .*billing"):
        submit_job(SPEC, ALICE)


def test_a_sign_in_without_the_scope_is_told_to_allow_it(hub: FakeHub) -> None:
    with pytest.raises(HubError, match="does not include HF Jobs"):
        submit_job(SPEC, CAROL)


@pytest.mark.parametrize("kind", [500, 503, "drop"])
def test_a_hub_that_fails_may_answer_later(hub: FakeHub, kind: int | str) -> None:
    state = submit_job(SPEC, ALICE)
    hub.fail(kind, path="/api/jobs/", times=9)  # type: ignore[arg-type]
    for ask in (
        lambda: submit_job(SPEC, ALICE),
        lambda: job_state("alice", state.id, ALICE),
        lambda: job_flavors(ALICE),
        lambda: cancel_job("alice", state.id, ALICE),
    ):
        with pytest.raises(HubUnavailable) as refused:
            ask()
        assert ALICE not in str(refused.value)


def test_a_job_of_somebody_else_is_not_read(hub: FakeHub) -> None:
    state = submit_job(SPEC, ALICE)
    with pytest.raises(HubError):
        job_state("alice", state.id, BOB)


def test_a_job_that_is_gone_is_deleted(hub: FakeHub) -> None:
    assert job_state("alice", "nothing", ALICE).stage == "DELETED"


def test_the_program_of_a_job_is_pinned_to_a_commit_of_a_space_that_holds_it(hub: FakeHub) -> None:
    repo = hub.add_space("alice/app", {"qlora_space/places/job_entry.py": "", "app.py": ""})
    first = repo.head.sha
    assert pinned_code("alice/app", ALICE) == ("alice/app", first)
    repo.commit(repo.head.files, "newer")
    assert pinned_code(f"alice/app@{first}", ALICE) == ("alice/app", first)
    assert pinned_code("alice/app", ALICE) == ("alice/app", repo.head.sha)
    hub.add_space("alice/other", {"app.py": ""})
    for name, why in (
        ("", "It is not known from where"),
        ("alice/other", "does not hold this program"),
        ("alice/none", "no space 'alice/none'"),
        ("alice/app@0123", "has no revision"),
    ):
        with pytest.raises(HubError, match=why):
            pinned_code(name, ALICE)


@pytest.mark.parametrize(
    ("scope", "may"), [("openid jobs", True), ("openid read-repos", False), ("", True)]
)
def test_a_sign_in_says_whether_it_may_run_jobs(scope: str, *, may: bool) -> None:
    assert may_run_jobs(scope) is may
