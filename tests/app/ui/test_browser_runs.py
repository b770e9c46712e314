"""Runs in a real Chromium: queued, stalled, resumed, renamed, started again, compared."""

from typing import TYPE_CHECKING

import pytest

from qlora_space.core.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Metric,
    Note,
    Paused,
    Phase,
    Sample,
    Started,
    event_from_line,
    event_to_line,
)
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, RunFolder, create_run, view_of
from tests.app.ui.conftest import Site, says

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def by_hand(site: Site, name: str, *events: Event, origin: str = "") -> RunFolder:
    """A run with these events, as its worker would have written them."""
    request = TrainingRequest(name=name)
    plan = site.actions.plan(request)
    run = create_run(site.actions.settings.runs_folder, request, plan, origin=origin)
    log = EventLog(run.events_file)
    for event in (Started(place="CPU", pid=1, pid_start_time=0.0), *events):
        log.append(event)
    log.close()
    return run


def test_a_paused_run_is_resumed_from_its_checkpoint(page: "Page", site: Site) -> None:
    steps = [Metric(step=i, total_steps=60, values={"loss": 1.0}) for i in range(1, 31)]
    train = Phase(name="train", done=0, total=60)
    run = by_hand(site, "Slept", train, *steps, Paused(step=30, why="signal"))
    (run.checkpoints_folder / "step-000030").mkdir(parents=True)
    (run.checkpoints_folder / "step-000030" / "state.json").write_text("{}")
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-head .chip", "Paused")
    says(page, "#run-outcome", "Paused at step 30; everything is saved.")
    page.get_by_role("button", name="Resume from step 30").click()
    says(page, "#run-head .chip", "Done")
    says(page, "#log", "continuing after step 30")
    assert view_of(run).attempts == 2
    assert [step for step, _ in view_of(run).series("loss")] == list(range(1, 61))
    assert not page.locator("#resume").is_visible()


def test_a_failed_stop_is_shown_and_can_be_retried(page: "Page", site: Site) -> None:
    run = by_hand(site, "Busy", Phase(name="train", done=0, total=60))
    page.goto(f"{site.url}?run={run.id}")
    page.locator("#stop").click()
    message = site.actions.backend.stop_fails = "The disk is full."
    page.get_by_role("button", name="Stop and keep the adapter").click()
    says(page, ".toast-body", message)
    says(page, "#stop:enabled", "Stop")
    assert "Stopping" not in page.locator("#stop").inner_text()
    site.actions.backend.stop_fails = ""
    page.locator("#stop").click()
    page.get_by_role("button", name="Stop and keep the adapter").click()
    says(page, "#stop:disabled", "Stopping …")
    EventLog(run.events_file).append(Cancelled(step=0))


def test_a_run_that_ended_before_it_learned_anything_is_started_again(
    page: "Page", site: Site
) -> None:
    end = Failed(cause="The machine was restarted.", hint="Start it again.")
    run = by_hand(site, "Restarted", Phase(name="queue", done=0, total=1), end)
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-outcome", "The machine was restarted.")
    page.get_by_role("button", name="Start again").click()
    says(page, "#run-head .chip", "Done")
    assert view_of(run).attempts == 2


def test_a_queued_run_shows_its_queue_position(page: "Page", site: Site) -> None:
    running = by_hand(site, "Ahead", Phase(name="train", done=0, total=60))
    waiting = by_hand(site, "Behind", Phase(name="queue", done=0, total=1))
    page.goto(f"{site.url}?run={waiting.id}")
    says(page, "#run-head .chip", "Waiting")
    says(page, "#run-head", "Waiting for 1 run before it")
    says(page, "#run-head", "starts in about")
    page.locator("#new-run-button").click()
    says(page, "#start:enabled", "Start after “Ahead”")
    for run in (running, waiting):
        EventLog(run.events_file).append(Cancelled(step=0))


def test_a_silent_run_is_shown_as_stalled(page: "Page", site: Site) -> None:
    run = by_hand(site, "Frozen", Phase(name="train", done=0, total=60))
    lines = [event_from_line(line) for line in run.events_file.read_bytes().splitlines()]
    old = [line.model_copy(update={"time": line.time - 50}) for line in lines]
    run.events_file.write_text("".join(event_to_line(line) + "\n" for line in old))
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-head .chip", "Stalled")
    says(page, "#run-outcome", "not heard of for 50 s: stopped or frozen")
    says(page, "#runs", "Stalled")
    EventLog(run.events_file).append(Cancelled(step=0))


def test_a_run_is_renamed_and_made_again_with_one_change(page: "Page", site: Site) -> None:
    run = by_hand(site, "First try", Finished(step=60))
    page.goto(f"{site.url}?run={run.id}")
    page.locator("#rename").click()
    box = page.locator("#new-name :is(input, textarea)")
    page.wait_for_function("document.querySelector('#new-name :is(input, textarea)')?.value")
    box.fill("Better <b>name</b>")
    page.locator("#rename-now").click()
    says(page, "#run-head h2", "Better <b>name</b>")
    says(page, "#runs", "Better <b>name</b>")
    page.locator("#again").click()
    says(page, "#start", "Start training")
    page.locator("#advanced").get_by_text("Advanced").click()
    page.locator("#field-r input").fill("24")
    page.locator("#field-r input").press("Tab")
    says(page, "#card-fork tr", "Rank (r)")
    says(page, "#card-fork tr", "24")
    assert page.locator("#card-fork tbody tr").count() == 2, (
        "the rank, and lora_alpha that follows it"
    )
    page.locator("#start:enabled").click()
    says(page, "#run-fork", "Made from “Better <b>name</b>”.")
    says(page, "#run-fork tr", "Rank (r)")
    says(page, "#run-fork tr", "24")


def test_training_an_adapter_further_names_its_run(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run={site.done.id}&view=run")
    page.locator("#further").click()
    page.locator("#advanced").get_by_text("Advanced").click()
    field = "document.querySelector('#field-adapter :is(input, textarea)')?.value"
    page.wait_for_function(f"{field} === '{site.done.id}'")


def test_a_lost_network_is_shown_and_the_page_comes_back(page: "Page", site: Site) -> None:
    page.goto(f"{site.url}?run={site.done.id}")
    says(page, "#run-head .chip", "Done")
    page.context.set_offline(True)
    says(page, "#no-server", "Training goes on without it")
    page.context.set_offline(False)
    page.locator("#no-server").wait_for(state="detached")
    says(page, "#run-head .chip", "Done")


def answered(step: int, text: str, loss: float) -> tuple[Event, ...]:
    measured = Metric(step=step, total_steps=60, values={"eval_loss": loss})
    return measured, Sample(step=step, prompt="Where is it?", expected="In Olm.", text=text)


def test_answers_are_a_timeline_and_overfitting_is_reported(page: "Page", site: Site) -> None:
    evaluations = (
        (0, "It is it.", 3.0),
        (20, "In Olm.", 0.5),
        (40, "In Rome.", 0.7),
        (60, "No.", 0.9),
    )
    events = [event for each in evaluations for event in answered(*each)]
    run = by_hand(site, "By heart", *events, Finished(step=60))
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#samples", "After step 60")
    says(page, "#advice", "the held-out loss was lowest at step 20 (0.5) and is 0.9 now")
    says(page, "#charts-body .best span", "best, step 20")
    page.locator("#timeline button").filter(has_text="After step 20").click()
    says(page, "#samples h4", "After step 20")
    says(page, "#samples", "as expected")
    says(page, "#timeline [aria-current]", "1 of 1 match")
    page.locator("#sample-step input[type=range]").focus()
    page.keyboard.press("Home")
    says(page, "#samples h4", "Before training")
    says(page, "#samples", "It is it.")


def test_other_runs_are_compared_with_the_settings_that_differ(page: "Page", site: Site) -> None:
    plan = site.actions.plan(TrainingRequest(name="Higher rank", r=64))
    request = TrainingRequest(name="Higher rank", r=64)
    other = create_run(site.actions.settings.runs_folder, request, plan)
    log = EventLog(other.events_file)
    log.append(Started(place="CPU", pid=1, pid_start_time=0.0))
    for step in range(1, 31):
        log.append(Metric(step=step, total_steps=60, values={"loss": 2.0 - step / 30}))
    log.append(Cancelled(step=30))
    page.goto(f"{site.url}?run={site.done.id}")
    says(page, "#run-head .chip", "Done")
    page.locator("#others input").click()
    page.get_by_role("option", name="Higher rank").click()
    says(page, "#overlay .key", "Higher rank")
    says(page, "#overlay .key", "Ferry facts")
    says(page, "#overlay tr", "Rank (r)")
    assert page.locator("#overlay .line.run-1").count() == 1
    page.locator("#runs a").filter(has_text="Bigger batch").click()
    says(page, "#run-head h2", "Bigger batch")
    page.locator("#overlay .key").first.wait_for(state="detached")


@pytest.mark.slow
def test_a_run_that_another_tab_deletes_leaves_this_one_at_the_start(
    page: "Page", site: Site
) -> None:
    run = by_hand(site, "Short-lived", Finished(step=60))
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-head h2", "Short-lived")
    site.actions.delete(run)
    says(page, "#start", "Start training")
    assert "run=" not in page.url


def shows_steps(page: "Page", steps: list[int]) -> None:
    page.wait_for_function(
        "(steps) => String(JSON.parse(document.querySelector('#charts-body .plot').dataset.hover).steps) === steps",
        arg=",".join(map(str, steps)),
    )


def test_hover_says_step_and_value_a_drag_zooms_and_the_log_is_filtered(
    page: "Page", site: Site
) -> None:
    steps = [
        Metric(step=i, total_steps=40, values={"loss": 4 - i / 20, "memory_gib": 1.25})
        for i in range(1, 41)
    ]
    measured = [Metric(step=i, total_steps=40, values={"eval_loss": 4 - i / 20}) for i in (20, 40)]
    warning = Note(level="warning", text="Free memory is low.")
    run = by_hand(site, "Zoom", *steps, *measured, warning, Finished(step=40))
    page.goto(f"{site.url}?run={run.id}")
    plot = page.locator("#charts-body .chart-large .plot")
    plot.hover(position={"x": plot.bounding_box()["width"] * 0.6, "y": 60})  # type: ignore[index]
    tip = plot.locator(".tip").text_content() or ""
    assert "step 24" in tip
    assert "training, not smoothed: 2.8" in tip
    assert "held-out: 3 at step 20" in tip
    memory = page.locator("#charts-body .chart-row .tip").last.text_content() or ""
    assert memory == "step 24\nMemory, GiB: 1.25 GiB"
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50, steps=3)
    page.mouse.up()
    field = page.get_by_label("Steps shown")
    shows_steps(page, [10, 20])
    assert field.input_value() == "10-20"
    plot.dblclick()
    shows_steps(page, [0, 40])
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50, steps=3)
    assert page.locator(".selection").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".selection").count() == 0
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 30, box["y"] - 30, steps=3)  # let go outside
    page.mouse.up()
    shows_steps(page, [30, 40])
    plot.dblclick()
    shows_steps(page, [0, 40])
    field.fill("5-9")  # the same with the keyboard
    shows_steps(page, [5, 9])
    page.locator("[data-log=level]").select_option("warning")
    assert page.locator("#log li:visible").all_text_contents()[0].endswith("Free memory is low.")
    assert page.locator("#log li:visible").count() == 1
    page.locator("[data-log=level]").select_option("")
    page.locator("[data-log=words]").fill("step 7 of")
    assert page.locator("#log li:visible").count() == 1


def test_a_proxy_that_holds_streams_back_costs_seconds_not_the_page(
    page: "Page", site: Site
) -> None:
    page.route("**/stream?*", lambda _: None)  # never answered
    run = by_hand(site, "Held back", Phase(name="train", done=0, total=60))
    log = EventLog(run.events_file)
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#run-head .chip", "Training")
    for step in (1, 2, 3):
        log.append(Metric(step=step, total_steps=60, values={"loss": 2.0}))
        says(page, "#log", f"Step {step} of 60")
    assert page.locator("#log li").filter(has_text="of 60").count() == 3
    log.append(Cancelled(step=3))
    says(page, "#run-head .chip", "Stopped")
    says(page, "#delete", "Delete")


def test_the_log_grows_at_its_top_follows_or_stays_and_keeps_the_newest(
    page: "Page", site: Site
) -> None:
    steps = [Metric(step=i, total_steps=900, values={"loss": 1.0}) for i in range(1, 351)]
    run = by_hand(site, "Long log", Phase(name="train", done=0, total=900), *steps)
    log = EventLog(run.events_file)
    page.goto(f"{site.url}?run={run.id}")
    says(page, "#log li:first-child", "Step 350 of 900")
    lines = page.locator("#log li[data-step]")
    assert lines.count() == 300
    page.locator("[data-log=follow]").uncheck()
    page.locator("#log .log").evaluate("list => { list.scrollTop = 400 }")
    seen = "list => [...list.children].find(li => li.offsetTop - list.offsetTop >= list.scrollTop).textContent"
    read = page.locator("#log .log").evaluate(seen)
    for step in range(351, 356):
        log.append(Metric(step=step, total_steps=900, values={"loss": 1.0}))
    says(page, "#log li:first-child", "Step 355 of 900")
    assert lines.count() == 300
    assert page.locator("#log .log").evaluate(seen) == read
    page.locator("[data-log=follow]").check()
    log.append(Note(level="warning", text="Free memory is low."))
    says(page, "#log li:first-child", "Free memory is low.")
    assert page.locator("#log .log").evaluate("list => list.scrollTop") == 0
    log.append(Cancelled(step=355))
