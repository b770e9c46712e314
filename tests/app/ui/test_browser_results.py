"""Comparing and publishing in a real Chromium."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qlora_space.core.events import Cancelled
from qlora_space.hub import Target
from qlora_space.runs import PushRequest, UnsentPush
from tests.app.ui.conftest import Site, says
from tests.app.ui.fake import PROMPTS, scripted_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def hub_as_it_was(site: Site) -> Iterator[None]:
    user = site.actions.user
    yield
    site.actions.user, site.actions.is_offline, site.actions.publish_fails = user, False, False
    site.actions.repos.clear()
    site.done.publications_file.unlink(missing_ok=True)


def open_publish(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run={site.done.id}&view=publish")
    says(page, "#publish-title", "Ferry facts")


def name_repo(page: "Page", name: str) -> None:
    page.locator("#repo :is(input, textarea)").fill(name)


def test_both_models_answer_side_by_side_beside_the_expected_answer(
    page: "Page", site: Site
) -> None:
    page.goto(f"{site.url}?run={site.done.id}&view=compare")
    says(page, "#compare-title h2", "“Ferry facts” and its base")
    page.get_by_role("button", name=PROMPTS[0]).click()
    says(page, "#expected", "In the attic.")
    page.locator("#run-both").click()
    says(page, "#compare-status", "Same base, verified")
    assert "9f2c41d07ab3" not in page.locator("#compare-status").inner_text()
    says(page, ".pane-base", "a kind of light")
    says(page, ".pane-adapted", "In the attic.")
    page.locator("#prompt textarea").fill("something hostile")
    page.locator("#run-both").click()
    says(page, ".pane-adapted", "<img src=x onerror=window.hacked=1>${window.hacked=1}{{7*7}}")
    page.locator("#expected section").wait_for(state="detached")


def open_compare(page: "Page", site: Site, more: str = "") -> None:
    page.goto(f"{site.url}?run={site.done.id}&view=compare{more}")
    page.locator("#chips button").first.wait_for()


def ask(page: "Page", prompt: str, button: str = "#run-both") -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.locator(button).click()


def test_at_strength_0_the_adapted_pane_is_the_base(page: "Page", site: Site) -> None:
    open_compare(page, site)
    page.locator("#strength input[type=number]").fill("0")
    page.locator("#strength input[type=number]").blur()
    ask(page, PROMPTS[0])
    says(page, ".pane-adapted h3", "Adapted, strength 0")
    says(page, "#compare-status", "Same base, verified")
    says(page, ".pane-adapted", "a kind of light")


def test_a_checkpoint_is_picked_by_its_step_and_its_held_out_loss(page: "Page", site: Site) -> None:
    folder = site.done.checkpoint_folder(40)
    folder.mkdir(parents=True)
    try:
        open_compare(page, site)
        page.locator("#compare-step input").click()
        page.get_by_role("option", name="Step 40, held-out loss").click()
        ask(page, "Where?")
        says(page, ".pane-adapted h3", "Adapted, step 40")
    finally:
        folder.rmdir()


def test_views_of_an_answer_show_words_and_tokens_that_changed(page: "Page", site: Site) -> None:
    open_compare(page, site)
    ask(page, PROMPTS[0])
    says(page, "#compare-status", "Same base, verified")
    page.get_by_role("radio", name="Differences").click()
    says(page, ".pane-base del", "lantern is a kind of light")
    says(page, ".pane-adapted ins", "attic")
    page.get_by_role("radio", name="Token probabilities").click()
    says(page, "#panes .changes-title", "changed its mind")
    token = page.locator(".pane-adapted .odds.changed").first
    assert token.get_attribute("title") == ("Base 2 %, adapted 90 %. The base would write “The”.")


def test_a_conversation_goes_on_in_every_pane_with_its_own_answers(
    page: "Page", site: Site
) -> None:
    open_compare(page, site)
    ask(page, PROMPTS[0])
    page.locator("#continue").wait_for()
    ask(page, "And then?", "#continue")
    says(page, ".pane-adapted", "And so it is.")
    for pane, before in (("base", "a kind of light"), ("adapted", "In the attic.")):
        said = page.locator(f".pane-{pane}").inner_text()
        assert PROMPTS[0] in said
        assert before in said


def test_what_was_compared_is_kept_with_the_run_and_has_an_address(
    page: "Page", site: Site
) -> None:
    open_compare(page, site)
    ask(page, "Where are letters kept?")
    says(page, "#past a[aria-current]", "Where are letters kept?")
    page.wait_for_function("location.search.includes('of=')")
    address = page.url
    page.get_by_role("tab", name="Publish").click()
    page.wait_for_function("!location.search.includes('of=')")
    page.goto(address)
    says(page, ".pane-adapted", "In the attic.")
    assert page.locator("#prompt textarea").input_value() == "Where are letters kept?"
    ask(page, "Who rings the bell?")
    says(page, "#past a[aria-current]", "Who rings the bell?")
    page.locator("#past a").filter(has_text="letters").first.click()
    says(page, "#past a[aria-current]", "letters")
    assert page.locator("#prompt textarea").input_value() == "Where are letters kept?"


def test_a_second_run_on_the_same_base_answers_in_a_third_pane(page: "Page", site: Site) -> None:
    other = scripted_run(site.actions, "Milk facts", "finished")
    try:
        open_compare(page, site)
        page.locator("#compare-others input").click()
        page.get_by_role("option", name="Milk facts").click()
        page.keyboard.press("Escape")
        ask(page, PROMPTS[0])
        says(page, "#compare-status", "Same base, verified")
        says(page, ".pane-adapted_2 h3", "Milk facts")
        says(page, ".pane-adapted_2", "In the attic.")
        page.get_by_role("radio", name="Token probabilities").click()
        says(page, "#panes", "Where “Milk facts” changed its mind")
    finally:
        site.actions.delete(other)


def test_all_held_out_prompts_are_a_table_that_is_sorted_filtered_and_opened(
    page: "Page", site: Site
) -> None:
    open_compare(page, site)
    page.get_by_role("tab", name="Held-out").click()
    page.locator("#run-heldout").click()
    says(page, "#heldout-status", "Same base, verified")
    says(page, "#heldout-status", "Exact answers, of 4: Base 0, Adapted 4.")
    rows = page.locator("#heldout-table tbody tr")
    assert rows.count() == 4
    page.locator("#heldout-order input").click()
    page.get_by_role("option", name="Worst").click()
    says(page, "#heldout-table tbody tr:first-child", PROMPTS[0])
    page.locator("#heldout-order input").click()
    page.get_by_role("option", name="Best").click()
    says(page, "#heldout-table tbody tr:first-child", PROMPTS[3])
    page.locator("#heldout-filter input").click()
    page.get_by_role("option", name="Base better").click()
    says(page, "#heldout-table", "No prompt is like that.")
    page.locator("#heldout-filter input").click()
    page.get_by_role("option", name="All").click()
    page.get_by_role("button", name="Open prompt 4").click()
    says(page, ".pane-adapted", "Old Tam.")
    says(page, "#expected", "Old Tam.")
    page.wait_for_function("location.search.includes('of=')")
    page.reload()
    says(page, "#heldout-table tbody tr", "Old Tam.")
    says(page, "#past a[aria-current]", "4 prompts")


def test_blind_votes_are_cast_with_keys_counted_exported_and_become_a_dataset(
    page: "Page", site: Site
) -> None:
    site.done.votes_file.unlink(missing_ok=True)
    open_compare(page, site)
    page.get_by_role("tab", name="Blind votes").click()
    says(page, "#vote-standing", "No votes yet.")
    page.locator("#vote-again").click()
    for number in range(1, 5):
        says(page, "#vote-pair", f"Pair {number} of 4")
        pair = page.locator("#vote-pair").inner_text()
        markup = page.locator("#vote-pair").inner_html()
        assert "dapted" not in pair + markup
        left = page.locator("#vote-pair .pane").first.inner_text()
        is_adapted = "kind of light" not in left
        page.keyboard.press("0" if number == 4 else "1" if is_adapted else "2")
    says(page, "#vote-pair", "These answers are all voted on.")
    says(page, "#vote-standing", "Adapted won 3 of 3 (100 %; 95 % interval 44 % to 100 %), 1 tie.")
    says(page, "#vote-standing", "about 1 more vote at this rate")
    with page.expect_download() as waiting:
        page.locator("#vote-standing a").click()
    exported = [json.loads(line) for line in Path(waiting.value.path()).read_text().splitlines()]
    assert [vote["choice"] for vote in exported] == ["adapted"] * 3 + ["tie"]
    page.locator("#vote-dataset").click()
    says(page, "#start", "Start training")
    page.wait_for_function("document.querySelector('#field-dataset input')?.value == 'votes.jsonl'")
    (file,) = site.actions.uploads_folder.glob("*/votes.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all("kind of light" in row["rejected"][0]["content"] for row in rows)
    assert len(rows) == 3


def test_after_stop_no_pane_waits(page: "Page", site: Site) -> None:
    step_seconds, site.actions.backend.step_seconds = site.actions.backend.step_seconds, 40.0
    try:
        page.goto(f"{site.url}?run={site.done.id}&view=compare")
        page.locator("#chips button").first.wait_for()
        page.locator("#prompt textarea").fill("Where?")
        page.locator("#run-both").click()
        says(page, ".pane-base", "Waiting")
        page.locator("#halt").click()
        says(page, ".pane-base", "Stopped before the first word.")
        says(page, ".pane-adapted", "Stopped before the first word.")
        assert not page.get_by_text("Waiting …").count()
    finally:
        site.actions.backend.step_seconds = step_seconds


def test_a_discarded_run_promises_no_adapter(page: "Page", site: Site) -> None:
    run = scripted_run(site.actions, "Thrown away", "cancelled")
    page.goto(f"{site.url}?run={run.id}&view=compare")
    says(page, "#compare-missing", "The run was stopped and its adapter discarded.")
    assert page.locator("#run-both").is_disabled()
    assert site.actions.view(run).status == Cancelled(step=0).kind
    site.actions.delete(run)


def test_publishing_fails_in_a_sentence_then_proves_itself_and_is_remembered(
    page: "Page", site: Site
) -> None:
    open_publish(page, site)
    page.wait_for_function("document.querySelector('#repo :is(input, textarea)')?.value")
    repo = page.locator("#repo :is(input, textarea)")
    assert repo.input_value() == "ada/ferry-facts-qlora"
    name_repo(page, "somebody/else")
    assert page.locator("#private input").is_checked(), "nothing is made public unasked"
    says(page, "#checklist .missing", "Choose a name under: ada, acme")
    page.wait_for_function("document.querySelector('#publish').disabled")
    name_repo(page, "acme/ferry")
    says(page, "#checklist .ok", "New repository: acme/ferry")
    site.actions.publish_fails = True
    page.locator("#publish:enabled").click()
    says(page, "#published", "The Hub did not answer (503).")
    site.actions.publish_fails = False
    page.locator("#publish:enabled").filter(has_text="Publish again").click()
    says(page, "#published", "by hash")
    page.reload()
    says(page, "#published", "Published and verified")
    says(page, "#published", "yes, private")
    says(page, "#checklist .ok", "Existing repository (private): 1 commit will be added")
    assert repo.input_value() == "acme/ferry"
    assert page.locator("#published a").get_attribute("href") == "https://huggingface.co/acme/ferry"
    site.actions.repos.clear()
    page.reload()
    says(page, "#published", "it was deleted, renamed, or this account cannot see it")


@pytest.mark.parametrize(
    ("target", "words", "is_ready"),
    [
        (Target("foreign"), "Name taken: ada/tea holds files that are not from this run", False),
        (Target("not writable"), "Your token has no write access to ada/tea", False),
        (Target("ours"), "Existing repository (public: everyone can read it)", True),
    ],
)
def test_a_name_that_is_taken_is_told_before_anything_is_sent(
    page: "Page", site: Site, target: Target, words: str, is_ready: bool
) -> None:
    site.actions.repos["ada/tea"] = target
    open_publish(page, site)
    says(page, "#checklist .ok", "New repository: ada/ferry-facts-qlora")
    name_repo(page, "ada/tea")
    says(page, "#checklist li", words)
    page.locator("#private").wait_for(state="hidden")
    page.locator(f"#publish:{'enabled' if is_ready else 'disabled'}").wait_for()


def test_signed_out_nothing_is_claimed_about_a_name(page: "Page", site: Site) -> None:
    site.actions.user = None
    open_publish(page, site)
    says(page, "#checklist .missing", "hf auth login")
    name_repo(page, "ada/tea")
    page.wait_for_timeout(500)
    assert page.locator("#checklist li").count() == 3
    assert "ada/tea" not in page.locator("#checklist").inner_text()
    assert page.locator("#publish").is_disabled()


def test_a_hub_that_cannot_be_reached_is_not_taken_for_signed_out(page: "Page", site: Site) -> None:
    site.actions.is_offline = True
    open_publish(page, site)
    says(page, "#checklist .missing", "Can't reach the Hub")
    assert "Not signed in" not in page.locator("#checklist").inner_text()


def test_a_push_that_waits_is_shown_everywhere_and_can_be_forgotten(
    page: "Page", site: Site
) -> None:
    push = PushRequest(repo="acme/ferry", private=False)
    why = "acme/ferry could not be published: the Hub answered 503."
    site.done.keep_unsent_push(UnsentPush(request=push, tried_at=time.time(), why=why))
    try:
        page.goto(f"{site.url}?run={site.done.id}&view=run")
        says(page, "#run-outcome", "Not published to acme/ferry yet. It is tried again in")
        says(page, f"#runs [data-pick='{site.done.id}']", "Not published yet")
        open_publish(page, site)
        says(page, "#unsent", "the Hub answered 503")
        page.get_by_role("button", name="Do not send it").click()
        page.locator("#forget-push").wait_for(state="hidden")
        assert site.done.unsent_push() is None
    finally:
        site.done.forget_unsent_push()


def test_a_checkpoint_is_chosen_and_what_was_changed_there_is_asked_about(
    page: "Page", site: Site
) -> None:
    folder = site.done.checkpoint_folder(40)
    folder.mkdir(parents=True)
    site.actions.repos["ada/tea"] = Target("ours", changed=("README.md",))
    try:
        open_publish(page, site)
        page.locator("#publish-step input").click()
        page.get_by_role("option", name="Step 40, held-out loss").click()
        name_repo(page, "ada/tea")
        says(page, "#checklist .missing", "Changed on the Hub since: README.md")
        page.locator("#replace input").check()
        says(page, "#checklist .note", "will be replaced: README.md")
        page.locator("#publish:enabled").click()
        says(page, "#published", "checkpoint of step 40")
        assert site.actions.pushes[-1] == PushRequest(
            repo="ada/tea", private=False, step=40, replace=True
        )
    finally:
        folder.rmdir()


def test_where_to_publish_is_suggested_for_each_owner_and_checked_with_the_plan(
    page: "Page", site: Site
) -> None:
    site.actions.repos["acme/demo-demo-qlora"] = Target("foreign")
    page.goto(site.url)
    page.locator("#start:enabled").wait_for()
    page.locator("#advanced > button").click()
    box = page.locator("#field-hub-model-id input")
    box.click()
    page.get_by_role("option", name="ada/demo-demo-qlora").click()
    says(page, "#card-body", "ada/demo-demo-qlora: new repository, private")
    box.click()
    page.get_by_role("option", name="acme/demo-demo-qlora").click()
    says(page, "#card-body", "acme/demo-demo-qlora holds files of something else")
    says(page, "#start", "Publishing would fail: see the plan")


def test_the_settings_of_a_published_run_fill_the_form(page: "Page", site: Site) -> None:
    page.goto(site.url)
    page.locator("#start:enabled").wait_for()
    page.locator("#published-run > button").click()
    box = page.locator("#published-repo :is(input, textarea)")
    box.fill("ada/gone")
    page.get_by_role("button", name="Use its settings").click()
    says(page, ".toast-body", "The Hub has no model 'ada/gone'")
    box.fill("bob/tea")
    page.get_by_role("button", name="Use its settings").click()
    says(page, "#published-outcome", "The form has the settings of bob/tea")
    says(page, "#published-outcome", "It went on from an adapter")
    says(page, "#card-body", "Qwen/Qwen3-0.6B")
    says(page, "#card-body .command code", "--r 8")
