"""The page on a free port over scripted Actions, and a browser to use it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qlora_space.core.settings import Settings
from qlora_space.hub.account import Account
from qlora_space.runs import RunFolder
from tests.app.ui.fake import FakeActions, scripted_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# No network for the browser itself: it would check for updates and wait.
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Site:
    """A running page and the runs that are on it from the start."""

    url: str
    actions: FakeActions
    done: RunFolder
    failed: RunFolder


@pytest.fixture
def actions(tmp_path: Path) -> FakeActions:
    return FakeActions(Settings(home=tmp_path), step_seconds=0.0, num_steps=40)


@contextmanager
def serving(actions: FakeActions) -> Iterator[str]:
    """The address of the page over these actions."""
    from qlora_space.app.ui.page import build_page
    from qlora_space.app.ui.server import launch_options
    from qlora_space.app.ui.watch import Watching

    page, watching = build_page(actions), Watching(actions)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        **launch_options(actions, page, watching),
    )
    yield url
    watching.close()
    page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served(Settings(home=tmp_path_factory.mktemp("home"))) as site:
        yield site


@contextmanager
def served(settings: Settings) -> Iterator[Site]:
    """With runs that are over, on loopback whatever the settings say of who reaches it."""
    user = Account(name="ada", orgs=("acme",), can_write=True)
    actions = FakeActions(settings, user=user, step_seconds=0.05, num_steps=60)
    failed = scripted_run(actions, "Bigger batch", "failed", upto=47)
    done = scripted_run(actions, "Ferry facts", "finished")
    with serving(actions) as url:
        yield Site(url, actions, done, failed)


def find_chromium() -> str | None:
    """The system's Chromium; None: Playwright's own, if it is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = find_chromium()
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: the browser tests were left out")
        running = playwright.chromium.launch(executable_path=path, args=_QUIET)
        yield running
        running.close()


@pytest.fixture
def page(browser: "Browser", site: Site) -> Iterator["Page"]:
    """A fresh visitor; the test fails if the page's own scripts do."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)  # other work may have the cores
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    assert page.evaluate("window.hacked") is None
    assert not page.get_by_text("output values").count(), "a handler answered with nothing"
    context.close()
    assert not broken


def says(page: "Page", selector: str, words: str) -> None:
    page.locator(selector).filter(has_text=words).first.wait_for()
