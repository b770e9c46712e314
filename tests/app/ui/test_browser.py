"""The whole page in a real Chromium, over a scripted stand-in for Actions."""

import re
from typing import TYPE_CHECKING

import pytest

from qlora_space.core.events import Finished, Metric
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, create_run
from tests.app.ui.conftest import Site, says
from tests.app.ui.fake import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def choose(page: "Page", field: str, value: str) -> None:
    box = page.locator(f"#field-{field} input")
    box.fill(value)
    box.press("Enter")


def test_a_newcomer_sees_the_demo_planned_and_ready(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    says(page, "#data-facts", "Mira keeps a lantern")
    says(page, "#xray-body", "learned")
    says(page, "#card-body", "python -m qlora_space train")
    says(page, "#device", "CPU, 2 cores")
    says(page, "#account", "Signed in as ada")
    assert page.title() == "qlora_space"
    boxes = page.locator("#section-data .wrap-inner input:visible").all()
    assert len(boxes) > 2
    for box in boxes:
        assert box.evaluate("e => e.scrollWidth <= e.clientWidth"), box.input_value()


@pytest.mark.parametrize("height", [900, 600])
def test_what_will_happen_stays_in_view_while_the_form_is_read(
    page: "Page", site: Site, height: int
) -> None:
    """All of it, also on a screen that is too low: there it scrolls by itself."""
    page.set_viewport_size({"width": 1440, "height": height})
    page.goto(site.url)
    says(page, "#start", "Start training")
    says(page, "#xray-body", "learned")
    page.evaluate("window.scrollTo(0, 600)")
    page.wait_for_function("document.querySelector('#card').getBoundingClientRect().top < 50")
    card = page.locator("#card").bounding_box()
    assert card is not None
    assert card["y"] >= 0
    assert card["y"] + card["height"] <= height


def test_the_start_button_names_what_is_missing(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "broken")
    says(page, "#start", "Fix 1 error in the data")
    assert page.locator("#start").is_disabled()
    choose(page, "dataset", "nobody/here")
    says(page, "#data-facts", "There is no dataset 'nobody/here' on the Hub.")
    says(page, "#start", "Fix the dataset")
    choose(page, "dataset", "hostile")
    says(page, "#start", "Start training")
    choose(page, "base", "Qwen/Qwen3-235B")
    says(page, "#start", "Does not fit")


def test_advanced_options_are_checked_and_go_into_the_command(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.locator("#advanced").get_by_text("Advanced").click()
    rate = page.locator("#field-learning-rate input")
    assert re.fullmatch(r"Chosen for you: [\d.e-]+", rate.get_attribute("placeholder") or "")
    rate.fill("3")
    rate.press("Tab")
    says(page, "#card-body", "learning_rate is '3'")
    rate.fill("3e-4")
    rate.press("Tab")
    says(page, "#card-body code", "--learning-rate 0.0003")
    page.get_by_role("radio", name="Quick look").check()
    says(page, "#card-body code", "--preset quick")


def test_few_bits_open_their_options_and_mixed_ones_say_what_they_replace(
    page: "Page", site: Site
) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    heal = page.locator("#field-heal input")
    assert not heal.is_visible()
    page.locator("#field-bits label").filter(has_text="2 bit").click()
    heal.check()
    says(page, "#card-body code", "--bits 2 --heal")
    heal.uncheck()
    page.locator("#field-mean-bits input").fill("2.5")
    page.locator("#field-mean-bits input").press("Tab")
    says(page, "#card-body .summary", "2.5 bit")
    says(page, "#field-bits", "Replaced by mixed bits: 2.5 on average")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#sidebar.open").wait_for(state="detached")
    width = page.locator(".table-frame.bit-widths").bounding_box()["width"]  # type: ignore[index]
    assert width < 390


def test_a_fix_is_one_click_and_stands_in_the_form(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "warned")
    page.get_by_role("button", name="Train on each row once").click()
    page.locator("#field-deduplicate input:checked").wait_for()
    page.locator("#data-facts .notice").wait_for(state="detached")
    says(page, "#card-body code", "--deduplicate")


@pytest.mark.slow  # misses its moment on a machine whose cores are all busy
def test_the_line_of_the_lengths_moves_by_hand_and_by_key(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, ".cut-share", "Longest example 512 tokens: no example is longer.")
    page.get_by_role("button", name="Show more of the rows").click()
    page.locator("#data-options").get_by_text("Data options").click()
    page.locator("#field-max-length input").wait_for()
    share, line = page.locator(".cut-share output"), page.locator(".histogram input")
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 9, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    assert share.inner_text() == "Longest example 80 tokens: 38 % are longer and lose their end."
    assert page.locator("#field-max-length input").input_value() == ""
    page.mouse.up()
    says(page, "#card-body code", "--max-length 80")
    assert page.locator("#field-max-length input").input_value() == "80"
    line.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    says(page, "#card-body code", "--max-length 48")
    page.wait_for_function("document.activeElement.type === 'range'")


def test_the_column_of_each_part_can_be_chosen(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "hostile")
    page.get_by_text("Column mapping").first.click()
    page.locator("select[data-part=system]").select_option(HOSTILE)
    says(page, "#card-body code", "--columns")
    says(page, "#card-body code", HOSTILE)


def test_rows_and_tokens_are_folded_to_two_lines_and_unfold(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    for panel, lines in (("#data-facts", "tbody tr"), ("#xray-body", ".xray-row")):
        rows = page.locator(f"{panel} {lines}")
        assert rows.filter(visible=True).count() == 2
        page.locator(f"{panel} .more").click()
        rows.nth(2).wait_for()
        page.locator(f"{panel} .more[aria-expanded=true]").wait_for()
    assert page.locator("#xray-body .prompt, #data-facts .histogram").first.is_visible()


def test_each_token_can_be_inspected(page: "Page", site: Site) -> None:
    page.goto(site.url)
    page.locator("#xray-body .tokens b").first.hover()
    says(page, ".token-at", "learned")
    tokens = page.locator("#xray-body .tokens").first
    tokens.focus()
    tokens.evaluate("box => { box.token = undefined; }")
    page.keyboard.press("ArrowRight")
    says(page, ".token-at", "token 1 of 21, id 0, “<|im_start|>”, read only, special")
    page.keyboard.press("ArrowRight")
    says(page, ".token-at", "token 2 of 21, id 1, “user↵”, read only")


def test_another_dataset_forgets_what_was_chosen_for_the_last(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.locator("#data-options button").first.click()
    page.locator("#field-max-length input").fill("80")
    page.locator("#field-max-length input").press("Enter")
    says(page, "#card-body code", "--max-length 80")
    page.get_by_text("Column mapping").first.click()
    page.locator("select[data-part=system]").select_option("note")
    says(page, "#card-body code", "--columns")
    choose(page, "dataset", "warned")
    page.locator("#card-body code").filter(has_not_text="--columns").wait_for()
    assert page.locator("#field-columns input").input_value() == ""
    assert page.locator("#field-max-length input").input_value() == ""


def test_nothing_of_the_last_dataset_stands_under_the_next_name(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    says(page, "#data-facts", "Mira keeps a lantern")
    choose(page, "dataset", "slow/rows")
    says(page, "#data-facts", "Searching the Hub for “slow/rows” …")
    says(page, "#start", "Checking the data …")
    for rest in ("#xray-body .tokens", "#data-facts table", "#card-body .summary", "#glance p"):
        page.locator(rest).first.wait_for(state="detached")
    assert not page.locator("#field-eval-split").is_visible()
    says(page, "#base-facts", "Qwen3ForCausalLM")
    choose(page, "dataset", "nobody/here")
    says(page, "#data-facts", "There is no dataset 'nobody/here' on the Hub.")
    page.wait_for_timeout(int(1000 * site.actions.slow_seconds))
    says(page, "#data-facts", "There is no dataset 'nobody/here' on the Hub.")
    assert not page.locator("#data-facts table").count()
    assert not page.locator("#field-eval-split").is_visible()
    says(page, "#base-facts", "Qwen3ForCausalLM")


def test_a_silent_hub_is_told_in_the_section_that_needs_it(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "away/rows")
    says(page, "#data-facts", "The Hub does not answer.")
    says(page, "#base-facts", "Qwen3ForCausalLM")
    choose(page, "dataset", "warned")
    says(page, "#start", "Start training")
    choose(page, "base", "away/base")
    says(page, "#base-facts", "The Hub does not answer.")
    says(page, "#data-facts", "Rows are read with the tokenizer of the base.")
    says(page, "#start", "Can't reach the Hub")


def test_a_guess_waits_until_it_is_confirmed(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "guessed")
    says(page, "#start:disabled", "Confirm the columns")
    page.get_by_role("button", name="Use “prompt” as prompt").click()
    says(page, "#start:enabled", "Start training")
    assert page.locator("#field-columns input").input_value() == "prompt=prompt,completion=note"


def test_findings_with_one_fix_are_one_notice(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "dataset", "leaking")
    says(page, "#start:disabled", "Choose other held-out rows")
    says(page, "#data-facts .notice-error", "none is left to measure on")
    says(page, "#data-facts .notice-error", "A held-out row is also trained on.")
    assert page.locator("#data-facts .notice").count() == 1
    page.locator("#data-facts .fix").click()
    says(page, "#start:enabled", "Start training")


def test_a_plan_that_takes_long_offers_a_quick_look_beside_its_time(
    page: "Page", site: Site
) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    choose(page, "base", "Qwen/Qwen3-0.6B")
    button = page.locator("#card-body .fix")
    promised = button.inner_text().removeprefix("Quick look: ")
    button.click()
    says(page, "#card-body code", "--preset quick")
    says(page, "#card-body dd", promised)
    assert page.locator("#field-preset input:checked").input_value() == "quick"
    assert button.count() == 0


def test_an_upload_is_chosen_and_keeps_its_name(page: "Page", site: Site, tmp_path) -> None:
    file = tmp_path / "letters.jsonl"
    file.write_text('{"text": "a"}\n')
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.locator("#upload input[type=file], input[type=file]").first.set_input_files(file)
    says(page, "#card-body code", "--dataset letters.jsonl")
    assert str(site.actions.settings.home) not in page.content()


def test_one_run_starts_however_often_one_presses(page: "Page", site: Site) -> None:
    before = site.actions.backend.num_started
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.locator("#start").dblclick()
    page.wait_for_url(re.compile(r"\?run=[0-9a-f]{32}&view=run"))
    says(page, "#run-head", "Step ")
    page.reload()
    says(page, "#run-head .chip", "Done")
    says(page, "#run-outcome", "Exact answers: 0 → 94 of 100")
    says(page, "#samples", "as expected")
    assert site.actions.backend.num_started == before + 1


def test_the_page_follows_what_the_worker_writes(page: "Page", site: Site) -> None:
    actions = site.actions
    plan = actions.plan(TrainingRequest(name="By hand"))
    run = create_run(actions.settings.runs_folder, TrainingRequest(name="By hand"), plan)
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-head", "Waiting for the worker to start")
    log = EventLog(run.events_file)
    for step in (1, 2):
        log.append(Metric(step=step, total_steps=2, values={"loss": 4.0 - step}))
        says(page, "#charts-body", f"{4 - step}")
    log.append(Finished(step=2))
    says(page, "#run-head .chip", "Done")


def test_stopping_asks_first_and_keeps_the_adapter(page: "Page", site: Site) -> None:
    step_seconds = site.actions.backend.step_seconds
    site.actions.backend.step_seconds = 2.0
    run = site.actions.start(TrainingRequest(name="Too long"))
    page.goto(f"{site.url}?run={run.id}")
    page.locator("#stop").click()
    assert run.stop_request() is None
    page.get_by_role("button", name="Stop and keep the adapter").click()
    says(page, "#run-head .chip", "Stopped, kept")
    site.actions.backend.step_seconds = step_seconds
    page.locator("#delete").click()
    page.get_by_role("button", name="Delete for good").click()
    says(page, "#start", "Start training")
    assert not run.path.exists()


def test_a_failed_run_says_what_why_and_what_to_do(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run={site.failed.id}&view=run")
    says(page, "#run-outcome", "The machine ran out of memory at step 47.")
    says(page, "#run-outcome", "DefaultCPUAllocator: <b>")
    says(page, "#run-outcome", "Choose a smaller batch")
    page.get_by_text("Full process log").click()
    says(page, "#worker-log", "<script>alert(1)</script>")
    assert str(site.actions.settings.home) not in page.content()


def test_the_url_always_says_where_one_is(page: "Page", site: Site) -> None:
    page.goto(site.url)
    page.locator("#runs a").filter(has_text="Ferry facts").click()
    says(page, "#run-head", "Ferry facts")
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_url(f"**/?run={site.done.id}&view=compare")
    page.reload()
    page.locator("#prompt").wait_for()
    page.locator("#runs a").filter(has_text="Bigger batch").click()
    says(page, "#run-head", "Bigger batch")
    page.go_back()
    page.locator("#prompt").wait_for()
    page.locator("#new-run-button").click()
    page.locator("#new-run").wait_for()
    assert "run=" not in page.url


def test_an_unknown_run_is_a_sentence_on_the_first_page(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run=../../etc")
    page.get_by_text("There is no run '../../etc' on this machine.").wait_for()
    says(page, "#start", "Start training")


@pytest.mark.parametrize("view", ["", "run", "compare", "publish"])
def test_no_page_is_wider_than_the_window(page: "Page", site: Site, view: str) -> None:
    page.goto(site.url + (f"?run={site.done.id}&view={view}" if view else ""))
    ready = {"": "#start", "run": "#charts-body svg", "compare": "#chips button"}
    page.locator(ready.get(view, "#checklist li")).first.wait_for()
    for width in (1440, 768, 390, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        page.locator("#sidebar.open" if width > 768 else "#sidebar:not(.open)").wait_for(
            state="attached"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_the_list_of_runs_is_folded(page: "Page", site: Site) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{site.url}?run={site.done.id}")
    says(page, "#run-head .chip", "Done")
    page.locator("#sidebar:not(.open)").wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_reaches_the_start_button(page: "Page", site: Site) -> None:
    page.goto(site.url)
    says(page, "#start", "Start training")
    page.locator("#start").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "start"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
