"""Every page in every state, at three widths, light and dark, to be looked at.

    python benchmarks/screenshots.py /tmp/screenshots [--only compare] [--widths 390,1440]

The page runs over the scripted stand-in that its tests use; nothing is trained.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from qlora_space.app.ui.page import build_page
from qlora_space.app.ui.server import launch_options
from qlora_space.app.ui.watch import Watching
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.hub import Target
from qlora_space.hub.account import Account
from tests.app.ui.fake import PROMPTS, FakeActions, scripted_run

State = Callable[[Page], None]


def states(actions: FakeActions, url: str) -> dict[str, State]:  # noqa: C901 - one function a state
    """By name, how to get there."""
    done = scripted_run(actions, "Ferry facts", "finished")
    failed = scripted_run(actions, "Bigger batch", "failed", upto=47)
    discarded = scripted_run(actions, "Thrown away", "cancelled", upto=12)
    actions.repos["ada/taken"] = Target("foreign")

    def form(dataset: str, words: str) -> State:
        def go(page: Page) -> None:
            page.goto(url)
            _says(page, "#start", "Start training")
            box = page.locator("#field-dataset input")
            box.fill(dataset)
            box.press("Enter")
            _says(page, "#new-run", words)

        return go

    def run(which: str, view: str, selector: str, click: str = "") -> State:
        def go(page: Page) -> None:
            page.goto(f"{url}?run={which}&view={view}")
            page.locator(selector).first.wait_for()
            if click:
                page.locator(click).click()

        return go

    def new(page: Page) -> None:
        page.goto(url)
        _says(page, "#start", "Start training")

    def unfolded(page: Page) -> None:
        new(page)
        page.get_by_role("button", name="Show more of the rows").click()
        page.get_by_role("button", name="Show more of what").click()

    def mixture(page: Page) -> None:
        new(page)
        box = page.locator("#field-base input")
        box.fill("Qwen/Qwen3-30B-A3B")
        box.press("Enter")
        _says(page, "#base-facts", "mixture of experts")
        _says(page, "#section-plan, #plan, #new-run", "Experts")

    def searched(page: Page) -> None:
        new(page)
        page.locator("#field-base input").fill("")
        page.locator("#field-base input").press_sequentially("Qwen", delay=60)
        page.get_by_text("mixture of experts").first.wait_for()

    def advanced(page: Page) -> None:
        new(page)
        page.locator("#advanced .label-wrap").click()

    def few_bits(page: Page) -> None:
        new(page)
        page.locator("#field-bits label").filter(has_text="3 bit").click()
        page.locator(".ladder").wait_for()
        page.locator("#field-bits").scroll_into_view_if_needed()

    def live(page: Page) -> None:
        actions.backend.step_seconds = 0.5
        started = actions.start(TrainingRequest(name="Live"))
        page.goto(f"{url}?run={started.id}")
        _says(page, "#run-head", "Step ")
        page.locator("#stop").click()
        page.locator("#confirm-stop").wait_for()
        actions.backend.step_seconds = 0.05

    def compared(page: Page) -> None:
        run(done.id, "compare", "#chips button")(page)
        page.get_by_role("button", name=PROMPTS[0]).click()
        _says(page, "#expected", "In the attic.")
        page.locator("#run-both").click()
        _says(page, "#compare-status", "Same base")

    def viewed(name: str) -> State:
        def go(page: Page) -> None:
            compared(page)
            page.get_by_role("radio", name=name).click()
            page.wait_for_timeout(500)

        return go

    def heldout(page: Page) -> None:
        run(done.id, "compare", "#chips button")(page)
        page.get_by_role("tab", name="Held-out").click()
        page.locator("#run-heldout").click()
        _says(page, "#heldout-status", "Same base")

    def voted(page: Page) -> None:
        run(done.id, "compare", "#chips button")(page)
        page.get_by_role("tab", name="Blind votes").click()
        page.locator("#vote-again").click()
        for number in (1, 2, 3):
            _says(page, "#vote-pair", f"Pair {number} of")
            page.keyboard.press("1")
        _says(page, "#vote-pair", "Pair 4 of")

    def taken(page: Page) -> None:
        run(done.id, "publish", "#checklist .ok")(page)
        page.locator("#repo :is(input, textarea)").fill("ada/taken")
        _says(page, "#checklist", "Name taken")

    def published(page: Page) -> None:
        run(done.id, "publish", "#checklist .ok")(page)
        page.locator("#publish:enabled").click()
        _says(page, "#published", "Published and verified")

    def signed_out(page: Page) -> None:
        user, actions.user = actions.user, None
        run(done.id, "publish", "#checklist .missing")(page)
        actions.user = user

    def selected(page: Page) -> None:
        new(page)
        if not page.locator("#sidebar.open").count():  # folded on a phone
            page.locator("#sidebar .toggle-button").click()
        page.locator("#runs-select").click()
        page.locator("#runs-picked label").first.click()
        page.locator("#runs-delete:enabled").click()
        page.locator("#confirm-runs").wait_for()

    return {
        "new": new,
        "new-unfolded": unfolded,
        "new-advanced": advanced,
        "new-few-bits": few_bits,
        "new-mixture": mixture,
        "new-search": searched,
        "new-reading": form("slow/rows", "Searching the Hub"),
        "new-missing": form("nobody/here", "There is no dataset"),
        "new-offline": form("away/rows", "The Hub does not answer"),
        "new-guess": form("guessed", "Confirm the columns"),
        "new-errors": form("leaking", "Choose other held-out rows"),
        "runs-delete": selected,
        "run-live": live,
        "run-done": run(done.id, "run", "#charts-body svg"),
        "run-delete": run(done.id, "run", "#charts-body svg", "#delete"),
        "run-failed": run(failed.id, "run", "#run-outcome section"),
        "compare": run(done.id, "compare", "#chips button"),
        "compare-answers": compared,
        "compare-differences": viewed("Differences"),
        "compare-tokens": viewed("Token probabilities"),
        "compare-table": heldout,
        "compare-votes": voted,
        "compare-none": run(discarded.id, "compare", "#compare-missing .empty"),
        "publish-signed-out": signed_out,
        "publish-taken": taken,
        "published": published,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="states whose name contains this")
    parser.add_argument("--widths", default="390,768,1440")
    parser.add_argument("--themes", default="light,dark")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(home=Path(tempfile.mkdtemp()))
    user = Account(name="ada", orgs=("acme",), can_write=True)
    actions = FakeActions(settings, user=user, step_seconds=0.05, num_steps=60)
    page, watching = build_page(actions), Watching(actions)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        prevent_thread_lock=True,
        quiet=True,
        **launch_options(actions, page, watching),
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, go in states(actions, url).items():
            if options.only in name:
                for theme in options.themes.split(","):
                    for width in map(int, options.widths.split(",")):
                        _shoot(browser, go, options.folder / f"{name}-{width}-{theme}.png")
    page.close()


def _shoot(browser: Browser, go: State, file: Path) -> None:
    _, width, theme = file.stem.rsplit("-", 2)
    context = browser.new_context(
        viewport={"width": int(width), "height": 900},
        color_scheme="dark" if theme == "dark" else "light",
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    go(page)
    page.wait_for_timeout(700)
    # Not full_page: it makes the window one pixel wide for a moment, which folds the list of runs.
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": int(width), "height": max(900, height)})
    page.wait_for_timeout(300)
    page.screenshot(path=file)
    print(file)
    context.close()


def _says(page: Page, selector: str, words: str) -> None:
    page.locator(selector).filter(has_text=words).first.wait_for()


if __name__ == "__main__":
    main()
