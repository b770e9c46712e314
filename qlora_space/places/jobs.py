"""Runs in jobs of HF Jobs, with their owner's token: submitted here, followed by a process here (job_follower.py).

job.json in the run folder has the job's id: after a restart of this server or machine the run is followed again as soon
as there is a token of its owner.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

from qlora_space.core.errors import (
    BackendError,
    HubError,
    HubUnavailable,
    QloraSpaceError,
    RunError,
)
from qlora_space.core.events import Failed, Phase, Started
from qlora_space.hub.jobs import (
    JobState,
    cancel_job,
    job_state,
    pinned_code,
    submit_job,
    submitted_job,
)
from qlora_space.hub.mirror import push_copy
from qlora_space.places.environment import child_environment
from qlora_space.places.job_start import RUN_LABEL, job_spec
from qlora_space.places.local import LocalBackend
from qlora_space.runs import EventLog, RunFolder, RunView, own_run, view_of
from qlora_space.runs.job import JobRecord

_CLOCK_SECONDS = 60.0  # by which the Hub's may differ
_PENDING = "pending"  # in place of an id, while it is submitted


class JobBackend(LocalBackend):
    """`code`: 'OWNER/NAME' or 'OWNER/NAME@COMMIT' of a Space that holds this program; '' where none is known."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self._code = code
        self._changing, self._busy = threading.Lock(), set[str]()  # runs that this process works on

    def start(self, run: RunFolder, token: str | None) -> None:
        """Put the run into its copy, submit the job and follow it; it resumes from the newest checkpoint, if there is
        one. Raises HubError or BackendError; a run that had begun says why in its last event, too."""
        if not token:
            raise HubError("A job needs your sign-in.", "Sign in to the Hub and try again.")
        with self._alone_with(run):
            if run.is_in_job:  # a second press would pay a second job
                raise RunError("This run is in a job already.", "Stop it there first.")
            self._place(run, token)

    def _place(self, run: RunFolder, token: str) -> None:
        place = run.plan().offer
        repo = run.request().mirror_to
        assert place is not None
        assert repo is not None
        code = pinned_code(self._code, token)
        before = run.job()
        job = JobRecord(
            id=_PENDING,
            namespace=repo.split("/")[0],
            url="",
            repo=repo,
            flavor=place.flavor,
            label=place.label,
            usd_per_hour=place.hardware.price_per_hour_usd,
            timeout_seconds=place.timeout_seconds,
            submitted_at=time.time(),
            usd_before=before.usd(before.asked_at) if before else 0.0,
        )
        with _owned(run):
            run.clear_control_requests()
            run.keep_job(job)
            try:
                self._submit(run, job, code, token)
            except QloraSpaceError as error:
                run.keep_job(job.model_copy(update={"is_over": True, "stage": "ERROR"}))
                with contextlib.closing(EventLog(run.events_file)) as events:
                    events.append(Failed(cause=error.what, hint=error.hint))
                raise
            except OSError as error:
                raise BackendError(
                    f"The job could not be submitted: {error.strerror}.", "Free some space."
                ) from error
        with contextlib.suppress(BackendError):  # it runs all the same: `attach` follows it later
            self._follow(run, token)

    def _submit(self, run: RunFolder, job: JobRecord, code: tuple[str, str], token: str) -> None:
        with contextlib.closing(EventLog(run.events_file)) as events:
            place = f"{run.plan().device_label} (HF Jobs, {job.flavor})"
            step = run.resume_step() or 0
            events.append(Started(place=place, pid=0, pid_start_time=0.0, resume_step=step))
            events.append(Phase(name="job", done=0, total=0))
        push_copy(run, job.repo, token)
        state = self._submitted(run, job, code, token)
        try:
            run.keep_job(
                job.model_copy(update={"id": state.id, "url": state.url, "stage": state.stage})
            )
        except OSError:
            cancel_job(job.namespace, state.id, token)
            raise

    def _submitted(
        self, run: RunFolder, job: JobRecord, code: tuple[str, str], token: str
    ) -> JobState:
        """Also where the Hub took it and its answer was lost: nothing is paid unseen."""
        try:
            return submit_job(job_spec(run, job, code, token), token)
        except HubUnavailable:
            found = submitted_job(job.namespace, {RUN_LABEL: run.id}, token)
            if found is None or found.created_at < job.submitted_at - _CLOCK_SECONDS:
                raise
            return job_state(job.namespace, found.id, token)

    def _follow(self, run: RunFolder, token: str) -> None:
        arguments = ["follow-job", str(run.path), "--token-on-stdin"]
        self._start(run, token, arguments, child_environment())

    def attach(self, run: RunFolder, token: str | None) -> bool:
        """Follow a run that nobody follows now; whether a process was started for it. Raises QloraSpaceError."""
        job = run.job()
        if job is None or job.is_over or not token or run.id in self._busy:
            return False
        with self._alone_with(run):
            if self._has_follower(run) or is_followed(run):
                return False
            if job.id == _PENDING:
                self._find(run, job, token)
            self._follow(run, token)
        return True

    @contextlib.contextmanager
    def _alone_with(self, run: RunFolder) -> Iterator[None]:
        """The lock of the run folder is for other processes: within this one it says nothing. Raises RunError."""
        with self._changing:
            if run.id in self._busy:
                raise RunError("This run is on its way already.", "Wait a moment.")
            self._busy.add(run.id)
        try:
            yield
        finally:
            self._busy.discard(run.id)

    def _has_follower(self, run: RunFolder) -> bool:
        """One that this process has started lives, though it may not have the run's lock yet."""
        known = self._tokens.get(run.id)
        return known is not None and known[0].poll() is None

    def _find(self, run: RunFolder, job: JobRecord, token: str) -> None:
        """The server ended while it submitted the job."""
        job = run.job() or job
        if job.id != _PENDING:
            return
        found = submitted_job(job.namespace, {RUN_LABEL: run.id}, token)
        if found is not None and found.created_at >= job.submitted_at - _CLOCK_SECONDS:
            update = {"id": found.id, "url": found.url}
            run.keep_job(job.model_copy(update=update))
            return
        run.keep_job(job.model_copy(update={"is_over": True, "stage": "ERROR"}))
        with _owned(run), contextlib.closing(EventLog(run.events_file)) as events:
            events.append(
                Failed(
                    cause="This server ended while it submitted the job.", hint="Start it again."
                )
            )
        raise BackendError("The job of this run was not submitted.", "Start it again.")

    def view(self, run: RunFolder) -> RunView:
        """The run as its events describe it: those of the job come while it is followed."""
        for child in self._children:
            child.poll()
        return view_of(run)

    def stop(self, run: RunFolder, keep: bool) -> None:
        """Request it. Who follows the job asks it to save and end, and cancels it where it does not; with nothing to
        keep it is cancelled at once."""
        run.ask_to_stop(keep)

    def price(self, run: RunFolder) -> float:
        """Dollars so far."""
        job = run.job()
        return job.usd(time.time()) if job else 0.0


def is_followed(run: RunFolder) -> bool:
    lock = own_run(run)
    if lock is not None:
        lock.close()
    return lock is None


@contextlib.contextmanager
def _owned(run: RunFolder):
    lock = own_run(run)
    if lock is None:
        raise BackendError("Another process works on this run.", "Wait a moment and try again.")
    with contextlib.closing(lock):
        yield
