"""Every page in both themes: what axe-core finds, and what the keyboard reaches."""

from typing import TYPE_CHECKING

import pytest

from qlora_space.core.events import Cancelled, Phase
from qlora_space.runs import EventLog
from tests.app.ui.conftest import Site, says
from tests.app.ui.test_browser_runs import by_hand

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

_SEVERE = ("critical", "serious", "moderate")
_READY = {
    "new": ("#start:enabled", "Start training"),
    "live": ("#run-head .chip", "Training"),
    "done": ("#run-head .chip", "Done"),
    "failed": ("#run-outcome", "The machine ran out of memory"),
    "compare": ("#chips button", "Mira"),
    "table": ("#heldout-table tr", "Mira"),
    "tokens": (".changes-title", "changed its mind"),
    "votes": ("#vote-pair", "Pair 1 of"),
    "publish": ("#checklist .ok", "New repository"),
    "delete": ("#confirm-delete", "Delete this run"),
    "runs": ("#runs-picked", "Ferry facts"),
}


@pytest.fixture
def view(page: "Page", site: Site, request: pytest.FixtureRequest) -> str:
    """Open a page in a state and wait until it is there."""
    name, theme = request.param
    page.emulate_media(color_scheme=theme)
    live = by_hand(site, "Live", Phase(name="train", done=0, total=60)) if name == "live" else None
    run = {"failed": site.failed, "live": live}.get(name, site.done)
    assert run is not None
    shown = "compare" if name in ("table", "tokens", "votes") else name
    shown = shown if shown in ("compare", "publish") else "run"
    is_form = name in ("new", "runs")
    page.goto(site.url if is_form else f"{site.url}?run={run.id}&view={shown}")
    if name == "delete":
        page.locator("#delete").click()
    if name == "runs":
        page.locator("#runs-select").click()
    if name == "table":
        page.get_by_role("tab", name="Held-out").click()
        page.locator("#run-heldout").click()
    if name == "tokens":
        page.locator("#chips button").first.wait_for()
        page.locator("#prompt textarea").fill("Mira")
        page.locator("#run-both:enabled").click()
        page.get_by_role("radio", name="Token probabilities").click()
    if name == "votes":
        page.get_by_role("tab", name="Blind votes").click()
        page.locator("#vote-again").click()
    says(page, *_READY[name])
    page.wait_for_timeout(500)
    if live is not None:
        EventLog(live.events_file).append(Cancelled(step=0))
    return name


@pytest.mark.parametrize(
    "view", [(name, theme) for name in _READY for theme in ("light", "dark")], indirect=True
)
def test_axe_finds_nothing_severe(page: "Page", view: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    severe = [
        f"{each['impact']} {each['id']}: {node['target']} {node['html'][:160]}"
        for each in found
        if each["impact"] in _SEVERE
        for node in each["nodes"]
    ]
    assert not severe, f"{view}: " + "\n".join(severe)


def test_the_keyboard_finds_one_stop_for_each_choice_and_leaves_no_menu_open(
    page: "Page", site: Site
) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    stops = []
    while "start" not in stops and len(stops) < 60:
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.id || e.closest('[id]')?.id; })()"
            )
        )
    assert len(stops) <= 40, stops
    assert stops.count("field-bits") == stops.count("field-preset") == 1
    page.wait_for_timeout(400)
    assert page.locator("ul.option-list").count() == 0
    page.locator("#field-preset input:checked").focus()
    page.keyboard.press("ArrowRight")
    says(page, "#card-body code", "--preset thorough")


def test_the_first_stop_skips_to_start(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "start"


def test_escape_throws_nowhere_and_closes_menus(page: "Page", site: Site) -> None:
    """The page fixture fails on an error of a script."""
    page.goto(site.url)
    says(page, "#start", "Start training")
    for _ in range(20):
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
    page.locator("#field-dataset input").click()
    page.locator("ul.option-list").first.wait_for()
    page.keyboard.press("Escape")
    page.locator("ul.option-list").wait_for(state="detached")
    page.goto(f"{site.url}?run={site.done.id}")
    says(page, "#run-head .chip", "Done")
    page.locator("#others input").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")


def test_accordions_say_whether_they_are_open(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    button = page.locator("#advanced .label-wrap")
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    page.locator("#advanced .label-wrap[aria-expanded=true]").wait_for()
    assert page.locator("h1").count() == 1


def test_questions_come_one_at_a_time_and_escape_leaves_everything(
    page: "Page", site: Site
) -> None:
    page.goto(f"{site.url}?run={site.done.id}")
    says(page, "#run-head .chip", "Done")
    page.locator("#rename").click()
    page.locator("#edit-name").wait_for()
    page.locator("#delete").click()
    page.locator("#confirm-delete").wait_for()
    page.locator("#edit-name").wait_for(state="hidden")
    page.keyboard.press("Escape")
    page.locator("#confirm-delete").wait_for(state="hidden")
    assert site.done.path.exists()


def test_on_a_phone_start_is_in_reach_with_time_and_fit(page: "Page", site: Site) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(site.url)
    says(page, "#start", "Start training")
    says(page, "#glance", "Fits")
    box = page.locator("#start").bounding_box()
    assert box
    assert box["y"] + box["height"] <= 844
    assert box["height"] >= 40


def test_nothing_moves_when_the_page_opens(page: "Page", site: Site) -> None:
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver((list) => list.getEntries().forEach((each) => "
        "{ window.moved += each.value; })).observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(site.url)
    says(page, "#start", "Start training")
    says(page, "#xray-body", "learned")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.moved") < 0.1
