"""A run on ZeroGPU, from its own worker: it prepares the data, then asks for one slice of a GPU after the other, as
long as a page of the run is open or was a moment ago. The slices train; this process alone writes what happened.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from qlora_space.core.events import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Note,
    Paused,
    PauseReason,
    Slice,
    SliceState,
    event_from_line,
)
from qlora_space.core.interruption import Interrupted, Interruption
from qlora_space.core.wording import duration
from qlora_space.hub.zero_gpu import read_quota
from qlora_space.places.owner_token import OwnerToken
from qlora_space.places.refusals import Refusal, refusal_of
from qlora_space.plan.slices import (
    GRANT_SHARE,
    LEAST_SECONDS,
    MOST_SECONDS,
    Quota,
    SliceCosts,
    forecast,
    slice_seconds,
)
from qlora_space.runs import RunFolder, view_of

TAB_SECONDS = 150.0  # a browser lets a tab that is out of sight act once a minute
_POLL_SECONDS = 0.2
_MOST_WITHOUT_A_GPU = 3  # refusals in a row for want of one
_MOST_WITHOUT_PROGRESS = 2  # slices in a row
_FIRST_START_SECONDS, _FIRST_SAVE_SECONDS = 20.0, 3.0  # until they are measured
Ending = Finished | Cancelled | Paused | Failed
Emit = Callable[[Event], Event]


class SliceAsks:
    """Lines from the web server, one whenever a page of the run's owner asks for the run to go on: whose quota pays."""

    def __init__(self, pipe: int) -> None:
        self._newest, self._came_at = "", float("-inf")
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def newest(self) -> str | None:
        """The visitor's token; None if no page has asked for a while."""
        is_open = time.monotonic() - self._came_at < TAB_SECONDS
        return self._newest if is_open else None

    def _read(self, pipe: int) -> None:
        with open(pipe, encoding="utf-8") as lines:
            for line in lines:
                self._newest, self._came_at = str(json.loads(line)), time.monotonic()


@dataclass(frozen=True)
class SliceWork:
    """How a slice is trained: `train` is places/gpu_functions.py's `train_slice`, after whoever pays was named."""

    train: Callable[[int, str, float], Iterator[tuple[str, str]]]
    pays: Callable[[str], None]
    factor: float


class SlicedRun:
    """One attempt. Nothing of it is needed after it: the next one goes on from the newest checkpoint."""

    def __init__(
        self,
        run: RunFolder,
        emit: Emit,
        heartbeat: Callable[[], None],
        interruption: Interruption,
        asks: SliceAsks,
        token: OwnerToken,
        work: SliceWork,
    ) -> None:
        self._run, self._emit, self._heartbeat, self._interruption = (
            run,
            emit,
            heartbeat,
            interruption,
        )
        self._asks, self._token, self._work = asks, token, work
        self._costs = _planned_costs(run)
        self._is_measured = False
        self._most = MOST_SECONDS
        self._number = 0  # slices that ran
        self._known_left: float | None = None  # of the quota, from the last refusal
        self._without_gpu = self._without_progress = 0

    def execute(self) -> Ending:
        """Slices until an end, a refusal that takes long, or nobody is there any more. Raises Interrupted."""
        while True:
            gpu_token = self._wait_for_tab()
            if stopped := self._stopped():
                return stopped
            if gpu_token is None:
                return self._paused("tab", "It goes on when its page is open.")
            ending = self._slice(gpu_token)
            if ending is not None:
                return ending

    def _slice(self, gpu_token: str) -> Ending | None:
        """One slice, or why there was none. None: on with the next one."""
        quota = self._quota()
        asked = self._asked_seconds(quota)
        if not asked:
            return self._no_slice(quota)
        to_go = forecast(self._to_do_seconds(), self._costs, asked, quota).slices
        self._report("waits_for_gpu", asked, to_go)
        step_before = self._saved_step()
        measured = _Measured()
        self._work.pays(gpu_token)
        try:
            ending = self._train(asked, to_go, measured)
        except Exception as error:  # gradio's: known by their titles
            refusal = refusal_of(error)
            if refusal is None:
                raise
            return self._after_refusal(refusal, asked, step_before)
        self._known_left, self._without_gpu = None, 0
        self._measure(measured)
        if ending is None:  # it ended without one
            return self._after_refusal(_ENDED, asked, step_before)
        if ending.kind != "paused" or ending.why != "deadline":
            return ending
        return self._progress(step_before)

    def _train(self, asked: int, to_go: int, measured: "_Measured") -> Ending | None:
        """What the slice says is written as it comes; a signal to this process lets it save and end."""
        work_seconds = GRANT_SHARE * asked - self._costs.save - min(self._costs.step, 0.1 * asked)
        replies = self._work.train(asked, str(self._run.path), work_seconds)
        ending: Ending | None = None
        interrupted: Interrupted | None = None
        with self._interruption.held():
            for kind, line in replies:
                if not measured.began_at:
                    measured.began_at = time.time()
                    self._number += 1
                    self._report("runs", asked, to_go)
                self._heartbeat()
                if kind == "event":
                    measured.add(self._emit(event_from_line(line)))
                elif kind == "end":
                    ending = event_from_line(line)  # type: ignore[assignment]
                try:
                    self._interruption.check()
                except Interrupted as signal:
                    interrupted = signal
                    self._run.ask_to_pause()
        if interrupted and (ending is None or ending.kind == "paused"):
            raise interrupted
        return ending

    def _report(self, state: SliceState, asked: int, to_go: int) -> None:
        number = self._number + (state != "runs")
        self._emit(Slice(number=number, state=state, seconds=asked, to_go=to_go))

    def _wait_for_tab(self) -> str | None:
        """The token of a page that is open; None if none asks within TAB_SECONDS, or the run is to stop."""
        deadline, is_reported = time.monotonic() + TAB_SECONDS, False
        while (token := self._asks.newest()) is None:
            self._interruption.check()
            if self._run.stop_request() or time.monotonic() > deadline:
                return None
            if not is_reported:
                self._report("waits_for_tab", 0, 0)
                is_reported = True
            self._heartbeat()
            time.sleep(_POLL_SECONDS)
        return token

    def _stopped(self) -> Ending | None:
        """A stop between two slices needs no GPU: the checkpoint is the adapter, and can be gone on from."""
        match self._run.stop_request():
            case "discard":
                self._run.discard()
                return Cancelled(step=self._saved_step())
            case "keep":
                return self._paused("signal", "")
        return None

    def _progress(self, step_before: int) -> Ending | None:
        """Slices that get nowhere are not gone on with: they would take a whole quota."""
        self._without_progress = (
            0 if self._saved_step() > step_before else self._without_progress + 1
        )
        if self._without_progress < _MOST_WITHOUT_PROGRESS:
            return None
        start, step = duration(self._costs.start), duration(self._costs.step)
        return Failed(
            cause=f"{_MOST_WITHOUT_PROGRESS} slices got nowhere: starting takes {start}, a step {step}, and an "
            "evaluation longer than the rest of a slice.",
            hint="Use a smaller base, shorter rows or fewer held-out rows, or a Space with a GPU of its own.",
        )

    def _after_refusal(self, refusal: Refusal, asked: int, step_before: int) -> Ending | None:
        match refusal.kind:
            case "aborted":
                self._note(f"{refusal.what} It goes on from step {self._saved_step():,}.")
                self._costs = replace(self._costs, save=self._costs.save + 0.1 * asked)
                return self._progress(step_before)
            case "duration" if asked > LEAST_SECONDS:
                self._most = max(LEAST_SECONDS, asked // 2)
                return None
            case "quota" if self._known_left is None and self._is_enough(refusal.left_seconds):
                self._known_left = refusal.left_seconds
                return None
            case "quota":
                return self._paused("quota", refusal.sentence)
            case "broken":
                return Failed(cause=refusal.what, hint=refusal.hint)
            case "gpu" if self._without_gpu + 1 < _MOST_WITHOUT_A_GPU:
                self._without_gpu += 1
                return None
        return self._paused("gpu", refusal.sentence)

    def _no_slice(self, quota: Quota | None) -> Ending:
        """None that may be asked for has time for a step."""
        if quota is not None and self._asked_seconds(None):
            left = (
                f"{quota.left_seconds:.0f} s of your ZeroGPU quota are left: too few for a slice."
            )
            return self._paused("quota", f"{left} Try again tomorrow.")
        start, step = duration(self._costs.start), duration(self._costs.step)
        return Failed(
            cause=f"A slice of at most {self._most} s has no time for a step: starting takes {start}, a step {step}.",
            hint="Use a smaller base or shorter rows, or a Space with a GPU of its own.",
        )

    def _quota(self) -> Quota | None:
        if self._known_left is not None:
            return Quota(self._known_left, 0.0, self._work.factor)
        return read_quota(self._token.newest, self._work.factor)

    def _is_enough(self, left_seconds: float) -> bool:
        """For a shorter slice."""
        return self._asked_seconds(Quota(left_seconds, 0.0, self._work.factor)) > 0

    def _asked_seconds(self, quota: Quota | None) -> int:
        """Of the next slice; 0 if none has time for a step. Before anything was measured none is ruled out."""
        costs = self._costs if self._is_measured else replace(self._costs, start=0.0, step=0.0)
        return slice_seconds(self._to_do_seconds(), costs, quota, self._most)

    def _to_do_seconds(self) -> float:
        """Steps that are left, and the part of the plan's time that is no training."""
        plan, view = self._run.plan(), view_of(self._run)
        total = view.total_steps or plan.estimate.steps
        left = max(0, total - self._saved_step())
        return left * self._costs.step + plan.estimate.eval_seconds * left / max(total, 1)

    def _measure(self, measured: "_Measured") -> None:
        """A start may have to be a cold one again, so the longest counts."""
        found = measured.costs(self._costs)
        if self._is_measured:
            found = replace(found, start=max(found.start, self._costs.start))
        self._is_measured = self._is_measured or measured.has_steps
        self._costs = found

    def _saved_step(self) -> int:
        return self._run.resume_step() or 0

    def _paused(self, why: PauseReason, goes_on: str) -> Paused:
        return Paused(step=self._saved_step(), why=why, goes_on=goes_on)

    def _note(self, text: str) -> None:
        self._emit(Note(level="warning", text=text))


_ENDED = Refusal("aborted", "The slice ended before it had saved.")


class _Measured:
    """Times of one slice, by its events."""

    def __init__(self) -> None:
        self.began_at = 0.0
        self._steps: list[float] = []
        self._save_seconds = 0.0

    def add(self, event: Event) -> None:
        if event.kind == "metric" and "loss" in event.values:
            self._steps.append(event.time)
        elif event.kind == "checkpoint":
            self._save_seconds = max(self._save_seconds, event.seconds)

    @property
    def has_steps(self) -> bool:
        return len(self._steps) > 1

    def costs(self, before: SliceCosts) -> SliceCosts:
        save = self._save_seconds or before.save
        if not self.has_steps:
            return replace(before, save=save)
        step = (self._steps[-1] - self._steps[0]) / (len(self._steps) - 1)
        return SliceCosts(max(0.0, self._steps[0] - self.began_at - step), save, step)


def _planned_costs(run: RunFolder) -> SliceCosts:
    estimate = run.plan().estimate
    train_seconds = max(estimate.seconds - estimate.eval_seconds - _FIRST_START_SECONDS, 0.0)
    step = max(train_seconds / max(estimate.steps, 1), 0.01)
    return SliceCosts(_FIRST_START_SECONDS, _FIRST_SAVE_SECONDS, step)
