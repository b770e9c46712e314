"""What a run's worker does between slices: when it goes on, when it waits, when it gives up, and what it says."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from spaces.zero.gradio import error as platform_error

from qlora_space.core.events import Event, event_to_line
from qlora_space.core.interruption import Interrupted, Interruption
from qlora_space.hub.zero_gpu import read_quota
from qlora_space.places import sliced_run
from qlora_space.places.owner_token import OwnerToken
from qlora_space.places.sliced_run import SliceAsks, SlicedRun, SliceWork
from qlora_space.plan import Plan
from qlora_space.plan.slices import FIRST_SECONDS
from qlora_space.runs import EventLog, RunFolder, view_of
from qlora_space.train.slices import SliceEnd, SliceTrainer
from tests.train.small import Outcome, events_of, go_on, outcome, small_plan, small_run
from tests.train.test_slices import EndAfter

OWNER = "header.payload.signature"
SPENT = platform_error(
    "ZeroGPU quota exceeded",
    "You have exceeded your free ZeroGPU quota (60s requested vs. 3s left). Try again in 5:12:33. ",
)
SOME_LEFT = platform_error(
    "ZeroGPU quota exceeded",
    "You have exceeded your free ZeroGPU quota (60s requested vs. 45s left). Try again in 5:12:33. ",
)
TOO_LONG = platform_error(
    "ZeroGPU illegal duration",
    "The requested GPU duration (60s) is larger than the maximum allowed",
)
KILLED = platform_error("ZeroGPU worker error", "GPU task aborted")
NO_GPU = platform_error("ZeroGPU queue timeout", "No GPU was available after 60s")
Script = list[int | Exception]


class EndAfterPasses:
    """The end of a slice's time, at its nth forward pass; or when somebody asks."""

    def __init__(self, passes: int, run: RunFolder) -> None:
        self.wanted, self.run = EndAfter(passes), run

    def why(self) -> str | None:
        if self.run.pause_file.exists():
            return "signal"
        return "deadline" if self.wanted() else None


class Lender:
    """Slices that really train, in this process: each ends at its nth forward pass, or is what the platform raises.
    A pass below 0: it trains so many and is then killed."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[int] = []
        self.payers: list[str] = []
        self.trainer = SliceTrainer()

    def train(self, seconds: int, folder: str, work_seconds: float) -> Iterator[tuple[str, str]]:
        self.asked.append(seconds)
        assert 0 < work_seconds < seconds
        now = self.script.pop(0) if self.script else 9999
        if isinstance(now, Exception):
            raise now
        lines: list[tuple[str, str]] = []
        run, is_killed = RunFolder(Path(folder)), now < 0
        killed = EndAfter(-now)
        end = SliceEnd(2e10) if is_killed else EndAfterPasses(now, run)

        def beat() -> None:
            lines.append(("beat", ""))
            if is_killed and killed():
                raise KeyboardInterrupt

        try:
            ending = self.trainer.train(
                run, lambda e: lines.append(("event", event_to_line(e))), end, beat
            )
            lines.append(("end", event_to_line(ending)))
        except KeyboardInterrupt:
            self.trainer = SliceTrainer()
        yield from lines
        if is_killed:
            raise KILLED


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    run = small_run(tmp_path_factory.mktemp("reference"))
    go_on(run)
    return outcome(run)


def asks(*tokens: str) -> SliceAsks:
    """Of a page that asked a moment ago, and will not again."""
    reading, writing = os.pipe()
    for token in tokens:
        os.write(writing, json.dumps(token).encode() + b"\n")
    os.close(writing)
    made = SliceAsks(reading)
    deadline = time.monotonic() + 30
    while tokens and made.newest() != tokens[-1] and time.monotonic() < deadline:
        time.sleep(0.01)
    return made


def attempt(
    run: RunFolder, script: Script, asked: SliceAsks | None = None, interruption: Interruption | None = None
) -> tuple[Event, Lender]:  # fmt: skip
    log, lender = EventLog(run.events_file), Lender(script)
    work = SliceWork(lender.train, lender.payers.append, 1.0)
    sliced = SlicedRun(
        run,
        log.append,
        log.heartbeat,
        interruption or Interruption(),
        asked or asks(OWNER),
        OwnerToken(),
        work,
    )
    try:
        return log.append(sliced.execute()), lender
    finally:
        log.close()


def long_plan() -> Plan:
    """As far as it knows, evaluation takes most of an hour."""
    plan = small_plan()
    estimate = plan.estimate.model_copy(update={"seconds": 3030, "eval_seconds": 3000})
    return plan.model_copy(update={"estimate": estimate})


def test_slices_follow_each_other_while_the_page_is_open_and_end_in_one_last_event(
    reference: Outcome, tmp_path: Path
) -> None:
    run = small_run(tmp_path, small_plan(save_steps=0))
    end, lender = attempt(run, [5, 5, 5, 5, 5])
    assert end.kind == "finished"
    assert len(lender.asked) >= 5
    assert set(lender.payers) == {OWNER}
    assert outcome(run) == reference
    kinds = [e.kind for e in events_of(run)]
    assert [k for k in kinds if k in ("finished", "paused", "failed")] == ["finished"]
    numbers = [e.number for e in events_of(run) if e.kind == "slice" and e.state == "runs"]
    assert numbers == list(range(1, len(lender.asked) + 1))


def test_a_slice_that_is_killed_loses_what_came_after_its_last_checkpoint_and_nothing_else(
    reference: Outcome, tmp_path: Path
) -> None:
    """A checkpoint at every second step: of three steps that were done, one is done again."""
    run = small_run(tmp_path, small_plan(save_steps=2))
    end, _ = attempt(run, [-9])
    assert end.kind == "finished"
    assert outcome(run) == reference
    steps = [e.step for e in events_of(run) if e.kind == "metric" and "loss" in e.values]
    again = [step for step in set(steps) if steps.count(step) > 1]
    assert len(again) <= 2
    events = events_of(run)
    (note,) = (e for e in events if e.kind == "note" and e.level == "warning")
    saved = [e.step for e in events if e.kind == "checkpoint" and e.seq < note.seq]
    what = "ZeroGPU ended the slice before it had saved."
    assert note.text == f"{what} It goes on from step {saved[-1]}."
    assert view_of(run).step == 6


def test_a_spent_quota_pauses_the_run_and_says_when_it_goes_on(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    end, lender = attempt(run, [9, SPENT, SPENT])
    assert (end.kind, end.why) == ("paused", "quota")
    assert "5 h 12 min" in end.goes_on
    assert end.step == run.resume_step()
    assert len(lender.asked) == 2, "3 s are too few for a slice: it is not asked again"


def test_what_is_left_of_a_quota_is_used_by_a_shorter_slice(tmp_path: Path) -> None:
    run = small_run(tmp_path, long_plan())
    end, lender = attempt(run, [SOME_LEFT, 9999])
    assert end.kind == "finished"
    assert lender.asked[0] >= FIRST_SECONDS
    assert 20 <= lender.asked[1] <= 45


def test_a_slice_that_is_too_long_for_the_platform_is_asked_for_half_as_long(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path, long_plan())
    end, lender = attempt(run, [TOO_LONG, 9999])
    assert end.kind == "finished"
    assert lender.asked[1] == lender.asked[0] // 2
    numbers = {e.number for e in events_of(run) if e.kind == "slice"}
    assert numbers == {1}, "a slice that was refused is none"


def test_without_a_gpu_it_is_tried_three_times_and_then_paused(tmp_path: Path) -> None:
    end, lender = attempt(small_run(tmp_path), [NO_GPU, NO_GPU, NO_GPU, 9999])
    assert (end.kind, end.why) == ("paused", "gpu")
    assert end.goes_on == "No GPU was free within a minute. Try again in some minutes."
    assert len(lender.asked) == 3


def test_slices_that_get_nowhere_end_the_run_with_the_reason(tmp_path: Path) -> None:
    end, lender = attempt(small_run(tmp_path), [KILLED, KILLED, KILLED])
    assert end.kind == "failed"
    assert end.cause.startswith("2 slices got nowhere")
    assert len(lender.asked) == 2


def test_an_error_of_the_training_is_the_runs_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"):
        attempt(small_run(tmp_path), [ValueError("ours")])


def test_without_an_open_page_it_waits_and_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_run, "TAB_SECONDS", 0.5)
    run = small_run(tmp_path)
    end, lender = attempt(run, [], asked=asks())
    assert (end.kind, end.why, end.goes_on) == (
        "paused",
        "tab",
        "It goes on when its page is open.",
    )
    assert lender.asked == []
    assert [e.state for e in events_of(run) if e.kind == "slice"] == ["waits_for_tab"]
    assert view_of(run).status == "paused"


@pytest.mark.parametrize(("keep", "kind"), [(True, "paused"), (False, "cancelled")])
def test_a_stop_between_two_slices_needs_no_gpu(tmp_path: Path, keep: bool, kind: str) -> None:
    run = small_run(tmp_path)
    run.ask_to_stop(keep)
    end, lender = attempt(run, [], asked=asks())
    assert (end.kind, lender.asked) == (kind, [])


def test_a_signal_to_the_worker_lets_the_slice_save(reference: Outcome, tmp_path: Path) -> None:
    run, interruption = small_run(tmp_path), Interruption()
    seen: list[str] = []

    def after_two_steps() -> None:
        while sum(e.kind == "metric" for e in events_of(run)) < 1:
            time.sleep(0.005)
        seen.append("signal")

    watcher = threading.Thread(target=after_two_steps, daemon=True)
    watcher.start()
    interruption._asked = lambda: "signal" if seen else None
    with pytest.raises(Interrupted):
        attempt(run, [8, 9999], interruption=interruption)
    assert run.resume_step() is not None
    run.clear_control_requests()
    assert attempt(run, [])[0].kind == "finished"
    assert outcome(run) == reference


def test_the_quota_is_unknown_without_a_token() -> None:
    assert read_quota(None, 1.0) is None
