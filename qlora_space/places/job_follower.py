"""The process that follows a run in a job: `worker follow-job RUN_FOLDER`. It lives here and computes nothing.

It writes what the job reports into the run folder, as a worker here would: the page cannot tell them apart. The log is
read from its first line each time the connection is lost, and each event is taken once, by its `seq`. What ends a run
is written last, when adapter, report and checkpoints have come through the copy on the Hub.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from qlora_space.core.errors import DiskFull, HubError, HubUnavailable, NotSignedIn
from qlora_space.core.events import TERMINAL_KINDS, Cancelled, Event, Failed, Note, Paused
from qlora_space.core.wording import duration, price
from qlora_space.hub.jobs import JobState, ask_job, cancel_job, job_log, job_state
from qlora_space.hub.mirror import bring_home
from qlora_space.places.job_lines import EventLines, is_of_event
from qlora_space.places.owner_token import OwnerToken
from qlora_space.runs import EventLog, RunFolder, own_run, view_of
from qlora_space.runs.job import JobRecord

_LINES_AT_ONCE = 10_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """Seconds. `ask`: between two questions about the job's state; `wait` and `most_wait`: before a Hub that did not
    answer is asked again; `keep`: that a job has to save and end when it is asked to; `drain`: for the last lines of
    the log of a job that is over."""

    ask: float = 15.0
    wait: float = 3.0
    most_wait: float = 60.0
    keep: float = 300.0
    drain: float = 60.0


def follow_job(run: RunFolder, token: OwnerToken, patience: Patience = Patience()) -> int:
    """Until the job is over and everything is here. Exit 0, also where another process follows it already."""
    lock = own_run(run)
    if lock is None:
        log.info("Another process follows this run.")
        return 0
    with contextlib.closing(lock):
        job = run.job()
        if job is None or job.is_over or view_of(run).is_over:
            return 0
        return _Follower(run, job, token, patience).execute()


class _Break(Enum):
    """Between lines of the log."""

    AGAIN = "the next line is the first again"
    END = "there is none after it"


class _Follower:
    def __init__(
        self, run: RunFolder, job: JobRecord, token: OwnerToken, patience: Patience
    ) -> None:
        self._run, self._job, self._token, self._patience = run, job, token, patience
        self._events = EventLog(run.events_file)
        self._lines = EventLines(self._events.next_seq)
        self._log = _JobLog(run, job.id)
        self._read: queue.Queue[str | _Break] = queue.Queue(_LINES_AT_ONCE)
        self._renewed = threading.Event()
        self._ending: Event | None = None
        self._asked_at: dict[str, float] = {}  # what the job was asked for, by name
        self._refused_until = 0.0

    def execute(self) -> int:
        token = self._token
        token.tell(lambda _: self._renewed.set())
        threading.Thread(target=self._read_log, daemon=True).start()
        state = self._follow()
        self._come_home()
        self._write_end(state)
        self._keep(state, is_over=True)
        self._events.close()
        return 0

    def _follow(self) -> JobState:
        """Until the job is over and its log is read."""
        next_ask, over_at, is_read, state = 0.0, 0.0, False, None
        while True:
            is_read = self._take_lines() or is_read
            now = time.monotonic()
            if now >= next_ask and (asked := self._state()):
                state, next_ask = asked, now + self._patience.ask
                self._keep(state)
            elif now >= next_ask:
                next_ask = now + self._patience.wait
            self._obey(state)
            if is_read or self._ending:
                next_ask = min(next_ask, now + self._patience.wait)
            if state is not None and state.is_over:
                over_at = over_at or now
                if is_read or now - over_at > self._patience.drain:
                    self._take_lines()
                    return state

    def _state(self) -> JobState | None:
        """None: the Hub does not say now."""
        try:
            return job_state(self._job.namespace, self._job.id, self._token.newest)
        except HubError as error:
            log.warning("%s", error)
            return None

    def _keep(self, state: JobState, *, is_over: bool = False) -> None:
        update = {"stage": state.stage, "asked_at": time.time(), "is_over": is_over}
        update["running_seconds"] = max(state.running_seconds, self._job.running_seconds)
        self._job = self._job.model_copy(update=update)
        with contextlib.suppress(OSError):  # a full disk
            self._run.keep_job(self._job)

    # The log

    def _read_log(self) -> None:
        """In a thread of its own: a read waits as long as the job says nothing."""
        wait = self._patience.wait
        while True:
            try:
                for line in job_log(self._job.namespace, self._job.id, self._token.newest):
                    self._read.put(f"{line.rstrip()}\n")
                    wait = self._patience.wait
                self._read.put(_Break.END)
                return
            except HubError as error:
                log.warning("%s", error)
            self._read.put(_Break.AGAIN)
            self._renewed.wait(wait)
            self._renewed.clear()
            wait = min(2 * wait, self._patience.most_wait)

    def _take_lines(self) -> bool:
        """What was read, for a second at most; whether that was the end."""
        until = time.monotonic() + 1.0
        while (left := until - time.monotonic()) > 0:
            try:
                line = self._read.get(timeout=min(left, 0.2))
            except queue.Empty:
                return False
            if line is _Break.END:
                return True
            if line is _Break.AGAIN:
                self._log.begin()
            elif is_of_event(line):
                self._write(self._lines.take_line(line))
            else:
                self._log.add(line)
        return False

    def _write(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind in TERMINAL_KINDS:
                self._ending = event
            else:
                self._events.take(event)

    # What the person asks for

    def _obey(self, state: JobState | None) -> None:
        if state is None or state.is_over or self._ending:
            return
        stop = self._run.stop_request()
        has_something = stop == "keep" and state.stage == "RUNNING"
        if stop and not (has_something and self._ask("keep") <= self._patience.keep):
            self._ask("cancel")
        for name in ("save", "sample"):
            file = self._run.path / name
            if file.exists():
                file.unlink(missing_ok=True)
                self._asked_at.pop(name, None)
                self._ask(name)

    def _ask(self, what: str) -> float:
        """Once, and again where the Hub did not take it; seconds since then."""
        now, job, token = time.monotonic(), self._job, self._token.newest
        if what in self._asked_at:
            return now - self._asked_at[what]
        if now < self._refused_until:
            return 0.0
        try:
            if what == "cancel":
                cancel_job(job.namespace, job.id, token)
            else:  # a label that is new each time
                ask_job(job.namespace, job.id, f"{what}-{time.time_ns()}", token)
            self._asked_at[what] = now
        except HubError as error:
            log.warning("%s", error)
            self._refused_until = now + self._patience.wait
            if what == "keep":  # it cannot be asked: it is ended after the grace
                self._asked_at[what] = now
        return 0.0

    # The end

    def _come_home(self) -> None:
        """Files through the copy; events that the log has lost are in it too. As long as the Hub may still answer."""
        wait = self._patience.wait
        while True:
            try:
                copied = bring_home(self._run, self._job.repo, self._token.newest)
                break
            except (HubUnavailable, NotSignedIn, DiskFull, OSError) as error:
                log.warning("%s", error)
                self._renewed.wait(wait)
                self._renewed.clear()
                wait = min(2 * wait, self._patience.most_wait)
            except HubError as error:
                self._ending = self._ending if _keeps_nothing(self._ending) else _not_home(error)
                return
        for line in copied.splitlines():
            self._write(self._lines.take_event_line(line))

    def _write_end(self, state: JobState) -> None:
        for event in self._lines.give_up():  # what is between them is lost for good
            if event.kind in TERMINAL_KINDS:
                self._ending = event
            else:
                self._events.append(event)
        end = self._ending or self._end_without_a_word(state)
        if end.kind == "paused" and end.why == "deadline":
            limit = duration(self._job.timeout_seconds)
            text = f"The job's time is up ({limit}): everything is saved, and Resume goes on in a new job."
            self._events.append(Note(level="warning", text=text))
        if end.kind == "cancelled":
            self._run.discard()
        if end.seq == self._events.next_seq:
            self._events.take(end)
        else:
            self._events.append(end)

    def _end_without_a_word(self, state: JobState) -> Event:
        """The run's last event, where the job did not get to write it."""
        run, step = self._run, self._run.resume_step()
        stop, go_on = run.stop_request(), _go_on(step)
        if stop == "discard":
            return Cancelled(step=view_of(run).step)
        if state.stage == "CANCELED":
            if stop == "keep" and step:
                return Paused(step=step, why="signal")
            return Failed(cause="The job was cancelled before it had saved its end.", hint=go_on)
        used, limit = (
            max(state.running_seconds, self._job.running_seconds),
            self._job.timeout_seconds,
        )
        if limit and used >= limit - 2 * self._patience.ask:
            most = price(limit / 3600 * self._job.usd_per_hour)
            return Failed(
                cause=f"The job was ended after {duration(limit)}, the time that it was given ({most}).",
                hint=f"{go_on} With a higher max_usd it gets more.",
            )
        said = f" (“{state.message[:200]}”)" if state.message else ""
        return Failed(
            cause=f"The job ended before the run did: HF Jobs says {state.stage}{said}.",
            hint=f"{go_on} Its log is on {self._job.url}.",
            line=self._log.last,
        )


def _keeps_nothing(end: Event | None) -> bool:
    return end is not None and end.kind in ("cancelled", "failed")


def _not_home(error: HubError) -> Failed:
    return Failed(
        cause=f"The job is over, and its results could not be fetched: {error.what}",
        hint="Look at the private repository of the copy; what is in it can be fetched from there.",
    )


def _go_on(step: int | None) -> str:
    return f"Resume goes on from step {step:,}." if step else "Start it again."


class _JobLog:
    """What the job prints beside events, in worker.log: each line once, however often the log is read."""

    def __init__(self, run: RunFolder, job_id: str) -> None:
        self._file, self._title = run.log_file, f"=== job {job_id}"
        self._num_kept = self._count_kept()
        self._at = 0
        self.last = ""

    def begin(self) -> None:
        """The next line is the first."""
        self._at = 0

    def add(self, line: str) -> None:
        self._at += 1
        if line.strip():
            self.last = line.strip()[:500]
        if self._at <= self._num_kept:
            return
        self._num_kept = self._at
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(f"| {line}")

    def _count_kept(self) -> int:
        text = self._file.read_text(errors="replace") if self._file.exists() else ""
        _, title, after = text.rpartition(self._title)
        if not title:
            with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
                file.write(f"{self._title}\n")
        return sum(line.startswith("| ") for line in after.split("\n"))
