"""The places on a plan's card, and the job on a run's page."""

import pytest

from qlora_space.app.ui.render.places import job_line, places, smaller
from qlora_space.core.inspection import Change
from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, chosen_job, offers
from qlora_space.runs.job import JobRecord
from tests.app.ui.fake import LAPTOP
from tests.plan.test_places import MACHINES, planned

HOSTILE = "<img src=x onerror=alert(1)>"


def with_places(base: str, place: str = "here", **request: object) -> Plan:
    here = planned(base, LAPTOP)
    asked = TrainingRequest(base=base, dataset="alice/rows", place=place, **request)  # type: ignore[arg-type]
    found = offers(asked, here, MACHINES, lambda hardware: planned(base, hardware))
    offer = chosen_job(asked, found) if place == "job" else None
    plan = planned(base, offer.hardware) if offer else here
    return plan.model_copy(update={"places": found, "offer": offer})


def test_each_place_has_memory_time_and_price_and_a_button_but_the_one_that_is_chosen() -> None:
    html = places(with_places("Qwen/Qwen3-8B"))
    assert "This machine" in html
    assert html.count("Chosen") == 1
    assert html.count("cheapest that fits") == 1
    assert html.count("Run it there") == 3
    assert 'data-set="place" data-to="job l4x1"' in html
    assert "at most $" in html


def test_a_job_that_was_chosen_can_be_taken_back() -> None:
    html = places(with_places("Qwen/Qwen3-8B", "job", flavor="h200"))
    assert 'data-to="here"' in html
    assert "H200" in html
    assert html.count("Chosen") == 1


def test_where_nothing_fits_the_largest_machine_is_shown_without_a_button() -> None:
    plan = with_places("Qwen/Qwen3-235B")
    html = places(plan)
    assert "H200" in html
    assert "Run it there" not in html
    assert "Does not fit" in html
    assert "No place takes this run" in smaller(plan, ())


def test_this_machine_alone_is_no_choice() -> None:
    assert places(planned("demo", LAPTOP)) == ""


def test_what_would_let_a_run_fit_is_a_button_each() -> None:
    plan = with_places("Qwen/Qwen3-235B")
    html = smaller(plan, [(Change(field="bits", value="3"), "3 bits: 20 GiB")])
    assert 'data-set="bits" data-to="3"' in html
    assert smaller(with_places("demo"), ()) == ""


def test_a_job_with_less_time_than_planned_says_so() -> None:
    plan = with_places("Qwen/Qwen3-8B", "job")
    assert plan.offer is not None
    short = plan.offer.model_copy(update={"timeout_seconds": 60})
    html = places(plan.model_copy(update={"offer": short}))
    assert "less than is planned" in html


@pytest.mark.parametrize(
    ("stage", "is_over", "words"),
    [
        ("SCHEDULING", False, "waits for its machine · nothing so far, at most $2.00"),
        ("RUNNING", False, "is running · $1.00 so far, at most $2.00"),
        ("COMPLETED", True, "is over · $0.50 in all, at most $2.00"),
    ],
)
def test_a_runs_page_says_what_its_job_has_cost(stage: str, words: str, *, is_over: bool) -> None:
    seconds = {"SCHEDULING": 0.0, "RUNNING": 1800.0, "COMPLETED": 1800.0}[stage]
    job = JobRecord(
        id="abc",
        namespace="alice",
        url="https://hub/jobs/alice/abc",
        repo="alice/copy",
        flavor="l4x1",
        label=HOSTILE,
        usd_per_hour=1.0,
        timeout_seconds=7200,
        submitted_at=0.0,
        stage=stage,
        running_seconds=seconds,
        asked_at=1000.0,
        is_over=is_over,
    )
    html = job_line(job, now=2800.0)
    assert words in html
    assert HOSTILE not in html
    assert 'href="https://hub/jobs/alice/abc"' in html
    assert "href" not in job_line(job.model_copy(update={"url": "javascript:alert(1)"}), now=0.0)
    assert job_line(None, now=0.0) == ""
    assert job.usd(1e9) <= 2.0, "it is ended then"
