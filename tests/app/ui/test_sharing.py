"""What a link shows, to a program and in a browser, and that it gives no right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from qlora_space.core.events import Failed, Sample
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.plan import Plan
from qlora_space.runs import EventLog, RunFolder, create_run
from qlora_space.runs.folder import delete_run
from qlora_space.runs.sharing import share, shared_address, stop_sharing
from tests.app.ui.conftest import Site, served
from tests.app.ui.fake import FakeActions
from tests.app.ui.test_stream import Door, door, metric  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_SECRET = "osprey of the archive"


def _run_on(actions: FakeActions, *, is_public: bool) -> RunFolder:
    """A run of a dataset whose name and rows are secret where it is not public."""
    plan: Plan = actions.plan(TrainingRequest(name="Kites"))
    dataset = plan.dataset.model_copy(update={"id": f"ada/{_SECRET}", "is_public": is_public})
    plan = plan.model_copy(update={"dataset": dataset})
    run = create_run(actions.settings.runs_folder, TrainingRequest(), plan)
    log = EventLog(run.events_file)
    for step in range(1, 6):
        log.append(metric(step))
    log.append(Sample(step=5, prompt=_SECRET, text=_SECRET, expected=_SECRET))
    log.append(Failed(cause=f"Row 7 is {_SECRET!r}.", hint="Mend it.", line=_SECRET))
    return run


def _now(door: Door, run: RunFolder, query: str = "") -> httpx.Response:  # noqa: F811
    return httpx.get(f"{door.url}/{shared_address(run)}/now.json?{query}")


def test_a_link_shows_curves_and_no_word_of_the_data_where_it_is_not_public(door: Door) -> None:  # noqa: F811
    run = _run_on(door.actions, is_public=False)
    share(run)
    door.is_open = False  # an account has no part in it
    answer = _now(door, run)
    pieces = answer.json()["pieces"]
    assert "Kites" in pieces["run-head"]
    assert "a dataset that is not public" in pieces["run-head"]
    assert "This run failed." in pieces["run-outcome"]
    assert "Loss, nats per token" in pieces["charts-body"]
    page = httpx.get(f"{door.url}/{shared_address(run)}")
    assert page.status_code == 200
    for text in (answer.text, page.text):
        assert _SECRET not in text
        assert "osprey" not in text
    assert not answer.json()["log"]
    assert "samples-panel" not in page.text


def test_a_public_datasets_answers_are_shown_and_still_no_log(door: Door) -> None:  # noqa: F811
    run = _run_on(door.actions, is_public=True)
    share(run)
    seen = _now(door, run).json()
    assert _SECRET in seen["pieces"]["samples"]
    assert "Row 7" not in json.dumps(seen)
    assert not seen["log"]
    assert "state" not in seen


def test_others_runs_cannot_be_laid_over_a_shared_one(door: Door) -> None:  # noqa: F811
    run, other = (_run_on(door.actions, is_public=False) for _ in range(2))
    share(run)
    other.rename("A run of hers that is not shared")
    seen = _now(door, run, f"others={other.id}").text
    assert "not shared" not in seen


def test_the_stream_of_a_link_ends_with_it(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("qlora_space.app.ui.stream._CHECK_SECONDS", 0.2)
    run = _run_on(door.actions, is_public=False)
    share(run)
    door.is_open = False
    with httpx.stream("GET", f"{door.url}/{shared_address(run)}/stream", timeout=20) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith("data:") for line in lines)
        stop_sharing(run)
        assert any(line == "event: gone" for line in lines)


@pytest.mark.parametrize("what", ["", "/now.json", "/stream"])
def test_whatever_is_no_link_is_answered_alike(door: Door, what: str) -> None:  # noqa: F811
    run, deleted, stopped = (_run_on(door.actions, is_public=True) for _ in range(3))
    key, _, _ = (share(each) for each in (run, deleted, stopped))
    old, gone = shared_address(stopped), shared_address(deleted)
    stop_sharing(stopped)
    delete_run(deleted)
    wrong = [
        f"shared/{run.id}/{'A' * 43}",
        f"shared/{stopped.id}/{key}",
        f"shared/{'0' * 32}/{key}",
        old,
        gone,
    ]
    answers = [httpx.get(f"{door.url}/{path}{what}") for path in wrong]
    assert {answer.status_code for answer in answers} == {404}
    texts = {_without_nonce(answer.text) for answer in answers}
    assert len(texts) == 1
    assert "Nothing is shared by this link" in texts.pop()


def _without_nonce(page: str) -> str:
    start = page.find("nonce-")
    return page.replace(page[start + 6 : start + 28], "") if start >= 0 else page


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[Site]:
    """From other machines: elsewhere a link would be of no use."""
    with served(Settings(home=tmp_path, host="0.0.0.0")) as site:
        yield site


def test_where_nobody_else_comes_nothing_is_shared(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run={site.done.id}")
    page.locator("#rename").wait_for()
    assert not page.locator("#share").is_visible()


def test_its_owner_makes_a_link_in_the_page_and_takes_it_back(
    browser: "Browser", reachable: Site
) -> None:
    site = reachable
    owner = browser.new_context(viewport={"width": 1440, "height": 900})
    page = owner.new_page()
    page.goto(f"{site.url}?run={site.done.id}")
    page.locator("#share").click()
    page.locator("#share-words").get_by_text("Whoever has the link will see").wait_for()
    page.locator("#share-make").click()
    page.wait_for_function(
        "document.querySelector('#share-link :is(input, textarea)')?.value.startsWith('http')"
    )
    link = page.locator("#share-link").locator("input, textarea").input_value()
    assert link == f"{site.url}{shared_address(site.done)}"

    guest = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True)
    seen, broken = guest.new_page(), []
    seen.on("pageerror", lambda error: broken.append(str(error)))
    seen.on("console", lambda said: said.type == "error" and broken.append(said.text))
    seen.goto(link)
    seen.get_by_role("heading", name="Ferry facts").wait_for()
    seen.locator("#charts-body .plot").first.wait_for()
    seen.locator("#run-outcome .result").wait_for()
    before = seen.locator("#charts-body").inner_html()
    seen.get_by_role("checkbox", name="Smooth").uncheck()
    seen.wait_for_function(
        "html => document.querySelector('#charts-body').innerHTML !== html", arg=before
    )
    assert not seen.locator("button:visible").filter(has_text="Stop").count()
    assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not broken

    page.locator("#share-stop").click()
    page.locator("#share-make").wait_for()
    seen.reload()
    seen.get_by_text("Nothing is shared by this link").wait_for()
    for context in (owner, guest):
        context.close()
