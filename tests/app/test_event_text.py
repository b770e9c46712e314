"""Every phase and every kind of event has its words on every face: log and progress of the page, terminal."""

import time
from typing import get_args

import pytest

from qlora_space.app.cli.terminal import show_event
from qlora_space.app.ui.render import run as render_run
from qlora_space.core.event_text import PHASES, event_level, event_text, phase_text
from qlora_space.core.events import (
    TERMINAL_KINDS,
    Cancelled,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Gate,
    Heartbeat,
    Metric,
    Note,
    Paused,
    Phase,
    Rollback,
    Sample,
    Slice,
    Started,
)
from qlora_space.runs import RunView, fold

PHASE_NAMES = get_args(Phase.model_fields["name"].annotation)
STEP = {"loss": 2.5, "tokens_per_second": 3400.0, "memory_gib": 1.3}
# One event of each kind, and what the page's log and the terminal show of it.
EVENTS: list[tuple[Event, str, str]] = [
    (
        Started(place="CPU, 2 cores", pid=1, pid_start_time=0.0, resume_step=1200),
        "Started on CPU, 2 cores, continuing after step 1,200.",
        "Started on CPU, 2 cores, continuing after step 1,200.\n",
    ),
    (Phase(name="model", done=0, total=6), "Quantizing the base.", "Quantizing the base.\n"),
    (Phase(name="model", done=3, total=6), "", ""),
    (
        Metric(step=20, total_steps=60, values=STEP),
        "Step 20 of 60: loss 2.50, 3.4k tok/s.",
        "  step   20/60  loss 2.500  3,400 tok/s  1.3 GiB\n",
    ),
    (
        Metric(step=21, total_steps=60, values=STEP),
        "Step 21 of 60: loss 2.50, 3.4k tok/s.",
        "",
    ),
    (
        Metric(step=20, total_steps=60, values={"eval_loss": 0.5}),
        "Step 20: held-out loss 0.500.",
        "  step   20/60  held-out loss 0.500\n",
    ),
    (Sample(step=20, prompt="Where?", expected="In Olm.", text="In Rome."), "", ""),
    (
        Checkpoint(step=20, num_bytes=412_000, seconds=80),
        "Step 20: saved 412 kB in 1 min 20 s.",
        "",
    ),
    (
        Rollback(step=21, to_step=20, why="the loss is nan", learning_rate=1e-4),
        "Step 21: the loss is nan. Continuing from step 20 with half the learning rate.",
        "Step 21: the loss is nan. Continuing from step 20 with half the learning rate.\n",
    ),
    (Heartbeat(idle_seconds=15), "", ""),
    (
        Gate(bits=2, init="eora", points=(), is_broken=True, why="At 2 bits it is broken.", text="t"),
        "At 2 bits it is broken.",
        "At 2 bits it is broken.\n",
    ),
    (Note(level="warning", text="Memory is low."), "Memory is low.", "Memory is low.\n"),
    (Finished(step=60), "Done.", "Done.\n"),
    (
        Finished(step=60, stopped_by_hand=True),
        "Stopped; the adapter was kept.",
        "Stopped; the adapter was kept.\n",
    ),
    (
        Failed(cause="It broke.", hint="Start again.", line="KeyError"),
        "It broke.",
        "Failed: It broke. Start again.\n  KeyError\n",
    ),
    (
        Cancelled(step=20),
        "Stopped at step 20; nothing was kept.",
        "Stopped at step 20; nothing was kept.\n",
    ),
    (
        Paused(step=20, why="signal"),
        "Paused at step 20; everything is saved.",
        "Paused at step 20; everything is saved.\n",
    ),
    (
        Paused(step=20, why="quota", goes_on="Try again in 5 h 12 min."),
        "Paused at step 20; everything is saved. Try again in 5 h 12 min.",
        "Paused at step 20; everything is saved. Try again in 5 h 12 min.\n",
    ),
    (
        Slice(number=3, state="waits_for_gpu", seconds=60, to_go=6),
        "Slice 3 of about 8 waits for a GPU, for 60 s.",
        "Slice 3 of about 8 waits for a GPU, for 60 s.\n",
    ),
    (
        Slice(number=1, state="runs", seconds=60),
        "Slice 1 runs, for at most 60 s.",
        "Slice 1 runs, for at most 60 s.\n",
    ),
    (
        Slice(number=4, state="waits_for_tab"),
        "Slice 4 begins when the page of this run is open.",
        "Slice 4 begins when the page of this run is open.\n",
    ),
]  # fmt: skip


def kinds() -> set[str]:
    union, _ = get_args(Event)
    return {get_args(member.model_fields["kind"].annotation)[0] for member in get_args(union)}


def test_every_kind_of_event_is_among_the_examples() -> None:
    assert {event.kind for event, _, _ in EVENTS} == kinds()
    assert {*TERMINAL_KINDS} <= kinds()


@pytest.mark.parametrize(("event", "logged", "printed"), EVENTS, ids=lambda value: repr(value)[:20])
def test_page_and_terminal_show_the_same_text(
    event: Event, logged: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    markup = render_run.log([event])
    assert (f"<span>{logged}</span>" in markup) if logged else ("Nothing yet" in markup)
    show_event(event, RunView())
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("name", PHASE_NAMES)
def test_every_phase_has_its_words_in_log_progress_and_terminal(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = Phase(name=name, done=0, total=1, time=time.time())  # type: ignore[arg-type]
    words = phase_text(phase)
    assert f"<span>{words}.</span>" in render_run.log([phase])
    started = Started(place="CPU", pid=1, pid_start_time=0.0, time=phase.time)
    view = fold([started, phase])
    # During training the progress is counted in steps.
    assert ("Step 0 of 1" if name == "train" else words) in render_run.progress(view)
    show_event(phase, view)
    is_shown_otherwise = name in ("train", "evaluate")  # by its steps, by its held-out loss
    assert capsys.readouterr().err == ("" if is_shown_otherwise else f"{words}.\n")


def test_the_table_has_no_phase_that_does_not_exist() -> None:
    assert set(PHASES) == set(PHASE_NAMES)


def test_what_is_wrong_has_a_level_that_the_page_colours() -> None:
    levels = {event.kind: event_level(event) for event, _, _ in EVENTS}
    assert {kind: level for kind, level in levels.items() if level != "info"} == {
        "rollback": "warning",
        "gate": "error",
        "note": "warning",
        "failed": "error",
    }


def test_a_queued_run_names_how_many_are_before_it() -> None:
    assert event_text(Phase(name="queue", done=0, total=2)) == "Waiting for 2 runs before it."
