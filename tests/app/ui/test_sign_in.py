"""A Space as a visitor sees it who is not signed in."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.app.ui.conftest import says
from tests.fake_hub import FakeHub
from tests.space import running_space

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def nobody(browser: "Browser", tmp_path: Path) -> Iterator["Page"]:
    with FakeHub() as hub, running_space(hub, sys.executable, ROOT, tmp_path) as url:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        refused: list[str] = []
        page.on("response", lambda r: refused.append(r.url) if r.status >= 400 else None)
        page.goto(url)
        yield page
        page.close()
        assert refused == [], "the border lets through what the page itself asks for"


def test_nobody_sees_the_demo_and_what_a_sign_in_is_for(nobody: "Page") -> None:
    says(nobody, "#card-body", "417 steps")
    says(nobody, "#start", "Sign in to start")
    assert nobody.locator("#start").is_disabled()
    assert nobody.locator("#login").is_visible()
    broken = "() => [...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert nobody.evaluate(broken) == 0, "no picture is missing"
    box = nobody.locator("#field-dataset input")
    box.fill("alice/data")
    box.press("Enter")
    says(nobody, "#data-facts", "Sign in to read a dataset")
    says(nobody, "#start", "Sign in to start")
