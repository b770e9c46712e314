"""What somebody who is signed in on a Space finds on the page for their own account, in a real browser."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qlora_space.hub.mirror import push_copy
from tests.app.ui.conftest import says
from tests.fake_hub import ALICE, FakeHub
from tests.runs.folders import demo_run
from tests.space import SpaceVisitor, running_space

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def her_page(browser: "Browser", hub: FakeHub, tmp_path: Path) -> Iterator["Page"]:
    """Alice's, who has a copy of a run that this Space has lost."""
    lost = demo_run(tmp_path / "old disk")
    lost.events_file.write_bytes(b'{"seq":0}\n')
    push_copy(lost, "alice/copy", ALICE)
    with running_space(hub, sys.executable, ROOT, tmp_path / "space") as url:
        visitor = SpaceVisitor(url)
        hub.signs_in_as = ALICE
        visitor.sign_in()
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_extra_http_headers(visitor.headers)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        yield page
        context.close()


def test_copies_are_kept_unless_one_says_no_and_lost_runs_come_back(her_page: "Page") -> None:
    says(her_page, "#start", "Start training")
    assert her_page.get_by_label("Keep a private copy on my account").is_checked()
    her_page.locator("#copies-fetch").click()
    her_page.wait_for_url("**/?run=*")
    says(her_page, "#run-head", "Demo")
    her_page.locator("#copies").wait_for(state="hidden")


def test_a_space_of_ones_own_is_planned_then_made(her_page: "Page", hub: FakeHub) -> None:
    her_page.get_by_role("button", name="A Space of your own").click()
    her_page.locator("#own-space-plan").click()
    says(her_page, "#own-space-changes", "alice/qlora-space")
    assert ("space", "alice/qlora-space") not in hub.repos
    her_page.locator("#own-space-make").click()
    says(her_page, "#own-space-changes", "Done.")
    assert "app.py" in hub.repo("space", "alice/qlora-space").files
