"""A demo Space, an export in a repository of its own, and links that open the page filled in, in a real Chromium."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from qlora_space.core.export import EXPORT_FILE, Exported, ExportOptions
from qlora_space.runs import Publication
from tests.app.ui.conftest import Site, says

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
DONE = Publication(
    repo="ada/tea", url="https://huggingface.co/ada/tea", commit="4e1f" * 10, num_files=7, created=True, time=1.0
)  # fmt: skip


@pytest.fixture(autouse=True)
def hub_as_it_was(site: Site) -> Iterator[None]:
    yield
    site.actions.publish_fails = site.actions.was_changed_there = False
    site.actions.repos.clear()
    site.done.publications_file.unlink(missing_ok=True)
    shutil.rmtree(site.done.exports_folder, ignore_errors=True)


def test_a_demo_space_is_offered_after_a_publication_with_its_hardware_and_why(
    page: "Page", site: Site
) -> None:
    page.goto(f"{site.url}?run={site.done.id}&view=publish")
    says(page, "#publish-title", "Ferry facts")
    assert not page.locator("#demo-panel").is_visible()
    site.done.add_publication(DONE)
    page.reload()
    says(page, "#demo-why", "On a CPU: the base takes only 5 MiB at 16 bits")
    assert page.locator("#demo-repo :is(input, textarea)").input_value() == "ada/tea-demo"
    page.locator("#demo-make").click()
    says(page, "#demo-made", "Demo Space just now: ada/tea-demo")
    says(page, "#demo-made", "It builds for some minutes")
    says(page, "#demo-make", "Update the demo Space")
    (push,) = [each for each in site.actions.pushes if each.what == "demo-space"]
    assert (push.repo, push.hardware, push.private) == ("ada/tea-demo", "cpu-basic", False)
    assert page.locator("#demo-made a").get_attribute("href") == (
        "https://huggingface.co/spaces/ada/tea-demo"
    )
    site.actions.publish_fails = True
    page.locator("#demo-make:enabled").click()
    says(page, "#demo-made", "The Hub did not answer (503).")


def export_of(site: Site) -> None:
    folder = site.done.exports_folder / "gguf"
    folder.mkdir(parents=True)
    made = Exported(
        options=ExportOptions(format="gguf"), dtype="bfloat16", num_bytes=9, files=("model.gguf",)
    )
    (folder / EXPORT_FILE).write_text(made.model_dump_json())


def test_an_export_is_published_under_a_name_of_its_own(page: "Page", site: Site) -> None:
    site.done.add_publication(DONE)
    export_of(site)
    page.goto(f"{site.url}?run={site.done.id}&view=run")
    page.locator("#publish-export > button").click()
    box = page.locator("#publish-export-repo :is(input, textarea)")
    page.wait_for_function(
        "document.querySelector('#publish-export-repo :is(input, textarea)').value"
    )
    assert box.input_value() == "ada/tea-gguf"
    page.locator("#publish-export-send").click()
    says(page, "#export-published", "GGUF file published just now: ada/tea-gguf")
    assert site.actions.pushes[-1].what == "gguf"
    assert site.actions.pushes[-1].private


def test_what_was_changed_on_the_hub_is_replaced_where_a_person_says_so(
    page: "Page", site: Site
) -> None:
    site.done.add_publication(DONE)
    export_of(site)
    site.actions.was_changed_there = True
    page.goto(f"{site.url}?run={site.done.id}&view=publish")
    says(page, "#demo-why", "On a CPU")
    replaced(page, site, "#demo-replace", "#demo-make", "#demo-repo", "#demo-made")
    page.goto(f"{site.url}?run={site.done.id}&view=run")
    page.locator("#publish-export > button").click()
    page.wait_for_function(
        "document.querySelector('#publish-export-repo :is(input, textarea)').value"
    )
    export = "#publish-export"
    replaced(
        page, site, f"{export}-replace", f"{export}-send", f"{export}-repo", "#export-published"
    )


def replaced(page: "Page", site: Site, box: str, send: str, repo: str, outcome: str) -> None:
    assert not page.locator(box).is_visible()
    page.locator(send).click()
    says(page, outcome, "was changed on the Hub")
    assert not site.actions.pushes[-1].replace
    page.locator(f"{box} input").check()
    name = page.locator(f"{repo} :is(input, textarea)")
    mine = name.input_value()
    name.fill("ada/other")
    page.wait_for_function(f"!document.querySelector('{box} input').checked")
    name.fill(mine)
    page.wait_for_timeout(500)  # for the change of the name
    page.locator(f"{box} input").check()
    page.locator(f"{send}:enabled").click()
    says(page, outcome, "just now: " + mine)
    assert (site.actions.pushes[-1].repo, site.actions.pushes[-1].replace) == (mine, True)
    page.locator(box).wait_for(state="hidden")


def test_a_link_fills_the_comparison_in_and_starts_nothing(page: "Page", site: Site) -> None:
    site.actions.compared.clear()
    page.goto(f"{site.url}?adapter=bob/tea&base=Qwen/Qwen3-0.6B&revision=v1.0&prompt=Who%3F%0A<b>")
    says(page, "#adapter-page h2", "Compare an adapter on the Hub with its base")
    for name, value in (("adapter", "bob/tea"), ("base", "Qwen/Qwen3-0.6B"), ("revision", "v1.0")):
        assert page.locator(f"#link-{name} :is(input, textarea)").input_value() == value
    prompt = page.locator("#link-prompt textarea")
    assert prompt.input_value() == "Who?\n<b>"
    assert not page.locator("#new-run").is_visible()
    page.wait_for_timeout(500)
    assert site.actions.compared == [], "a link starts nothing"
    page.locator("#link-run").click()
    says(page, "#link-panes .pane-adapted", "attic")
    says(page, "#link-status", "Same base, verified")
    assert site.actions.compared == [("bob/tea", "v1.0", "Qwen/Qwen3-0.6B", "Who?\n<b>")]
    page.locator("#link-adapter :is(input, textarea)").fill("ada/gone")
    page.locator("#link-run").click()
    says(page, ".toast-body", "The Hub has no model")
    page.locator("#new-run-button").click()
    page.locator("#new-run").wait_for()
    assert "adapter=" not in page.url


def test_every_wrong_value_of_a_link_is_named_and_none_of_them_does_anything(
    page: "Page", site: Site
) -> None:
    site.actions.compared.clear()
    bad = {
        "adapter": "<img src=x onerror=window.hacked=1>",
        "base": "javascript:alert(1)",
        "revision": "a\nb ${window.hacked=1}",
        "prompt": "x" * 5000,
    }
    page.goto(f"{site.url}?{urlencode(bad)}")
    for words in (
        "adapter '<img src=x onerror=window.hacked=1>' is no name on the Hub",
        "base 'javascript:alert(1)' is no name on the Hub",
        "revision 'a\\nb ${window.hacked=1}' is no branch, tag or commit",
        "prompt is longer than 4,000 characters",
    ):
        says(page, "#link-problems", words)
    assert page.locator("#link-problems img").count() == 0
    for name in ("adapter", "base", "revision", "prompt"):
        assert page.locator(f"#link-{name} :is(input, textarea)").input_value() == ""
    page.locator("#link-run").click()
    says(page, ".toast-body", "No adapter is named")
    assert site.actions.compared == []
    page.goto(f"{site.url}?like=a+b<script>window.hacked%3D1</script>")
    says(page, "#published-outcome", "is no name on the Hub")


def test_a_link_to_a_published_run_opens_a_new_run_from_it(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?like=bob/tea")
    box = page.locator("#published-repo :is(input, textarea)")
    box.wait_for()
    page.wait_for_function(
        "document.querySelector('#published-repo :is(input, textarea)').value === 'bob/tea'"
    )
    assert "The form has" not in page.locator("#published-outcome").inner_text()
    page.get_by_role("button", name="Use its settings").click()
    says(page, "#published-outcome", "The form has the settings of bob/tea")


def test_a_link_is_copied_with_the_prompt_that_stands_there(page: "Page", site: Site) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.done.add_publication(DONE)
    page.goto(f"{site.url}?run={site.done.id}&view=compare")
    says(page, "#compare-title", "Copy link")
    page.locator("#prompt textarea").fill("Where & why?")
    page.locator("#compare-title .copy").click()
    says(page, "#compare-title .copy", "Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    query = f"adapter=ada%2Ftea&revision={DONE.commit}&prompt=Where+%26+why%3F"
    assert copied == f"{site.url}?{query}"
    page.goto(copied)
    says(page, "#adapter-page h2", "Compare an adapter")
    assert page.locator("#link-prompt textarea").input_value() == "Where & why?"
    page.goto(f"{site.url}?run={site.done.id}&view=publish")
    page.locator("#published .copy").click()
    says(page, "#published .copy", "Copied")
    assert (
        page.evaluate("navigator.clipboard.readText()") == f"{site.url}?{query.rsplit('&', 1)[0]}"
    )


def test_a_button_that_copies_twice_has_its_words_again(page: "Page", site: Site) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.done.add_publication(DONE)
    page.goto(f"{site.url}?run={site.done.id}&view=compare")
    says(page, "#compare-title", "Copy link")
    words = page.locator("#compare-title .copy").evaluate("""async (button) => {
        const wait = (ms) => new Promise((done) => setTimeout(done, ms));
        button.click();
        while (!button.textContent.includes("Copied")) await wait(10);
        button.click();
        await wait(4000); // both times are over
        return button.textContent.trim();
    }""")
    assert words == "Copy link"
