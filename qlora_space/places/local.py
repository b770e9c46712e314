"""Runs on this machine: each worker has a session of its own, so it outlives the page and the server."""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from qlora_space.core.errors import BackendError
from qlora_space.core.events import Cancelled, Event, Failed
from qlora_space.core.facts import Hardware
from qlora_space.core.machine import read_hardware
from qlora_space.core.processes import is_alive, kill_orphans, kill_tree, wake
from qlora_space.places.environment import child_environment
from qlora_space.places.owner_token import TokenWriter
from qlora_space.runs import EventLog, RunFolder, RunView, fold, view_of
from qlora_space.runs.queue import START_SECONDS

_STOP_GRACE_SECONDS = 5.0
_FULL_DISK_BYTES = 2**16


class LocalBackend:
    """Starts, checks and stops workers. The state of a run is in its folder, not here."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []  # to reap those that ended
        self._tokens: dict[str, tuple[subprocess.Popen[bytes], TokenWriter]] = {}  # by run

    def start(self, run: RunFolder, token: str | None) -> None:
        """Start a worker, which waits in the queue and resumes from the newest checkpoint, if there is one.

        Its output goes to worker.log, its events to events.jsonl. Raises BackendError.
        """
        run.clear_control_requests()
        with_token = ["--token-on-stdin"] if token else []
        self._start(run, token, ["train", str(run.path), *with_token], child_environment())

    def _start(
        self,
        run: RunFolder,
        token: str | None,
        arguments: Sequence[str],
        environment: dict[str, str],
        pipes: Sequence[int] = (),
    ) -> None:
        command = [sys.executable, "-m", "qlora_space.places.worker", *arguments]
        try:
            with run.log_file.open("ab") as log:
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if token else subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=pipes,
                )
        except OSError as error:
            raise BackendError(
                f"The training process could not be started: {error.strerror}.",
                "Free some memory and try again.",
            ) from error
        self._children.append(worker)
        if worker.stdin is not None and token:
            self._forget_ended()
            writer = TokenWriter(worker.stdin)
            self._tokens[run.id] = (worker, writer)
            writer.send(token)

    def price(self, run: RunFolder) -> float:
        """Dollars so far: a machine that is there anyway costs none."""
        return 0.0

    def announce(self) -> None:
        """Before the page is up. Nothing needs to be known here."""

    def hardware(self, home: Path) -> Hardware:
        """What a run started now would train on; `home` is where its files go."""
        return read_hardware(home)

    def keep_going(self, run: RunFolder, gpu_token: str) -> bool:
        """A page of the run is open. A worker here needs nobody for that."""
        return True

    def _forget_ended(self) -> None:
        for run_id, (worker, writer) in list(self._tokens.items()):
            if worker.poll() is not None and self._tokens.pop(run_id, None):
                writer.close()

    def renew_token(self, run_ids: Iterable[str], token: str | None) -> None:
        """Hand it to the workers of these runs, as far as this process has started them."""
        for run_id in run_ids:
            if token and (known := self._tokens.get(run_id)):
                known[1].send(token)

    def view(self, run: RunFolder) -> RunView:
        """The run as its events describe it. If its worker died without a terminal event, that is appended here."""
        for child in self._children:
            child.poll()
        view = view_of(run)
        return view if view.is_over or _has_writer(run, view) else _record_worker_death(run)

    def stop(self, run: RunFolder, keep: bool) -> None:
        """Request a stop between two steps; with `keep` everything is saved first.

        A worker that has nothing to keep, or is stalled, is killed with its children within 10 s.
        """
        run.ask_to_stop(keep)
        view = self.view(run)
        wake(view.pid, view.pid_start_time)
        deadline = time.monotonic() + _STOP_GRACE_SECONDS
        while is_alive(view.pid, view.pid_start_time):
            if keep and not view.stalled_for(time.time()):
                return
            if time.monotonic() > deadline:  # with nothing to keep, no last event either
                kill_tree(view.pid, grace_seconds=1.0 if keep else 0.0)
            time.sleep(0.1)
            view = self.view(run)


def _has_writer(run: RunFolder, view: RunView) -> bool:
    if view.attempts:
        return is_alive(view.pid, view.pid_start_time)
    try:
        return time.time() - run.events_file.stat().st_mtime < START_SECONDS
    except FileNotFoundError:  # deleted meanwhile
        return True


def _record_worker_death(run: RunFolder) -> RunView:
    """Append the missing terminal event, once, whoever notices first, and kill what the worker left behind."""
    with run.events_file.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        view = view_of(run)
        if view.is_over or _has_writer(run, view):  # resumed meanwhile
            return view
        kill_orphans(view.pid)
        is_discarded = run.stop_request() == "discard"
        end: Event = Cancelled(step=view.step) if is_discarded else _sudden_end(run, view)
        if end.kind == "cancelled":
            run.discard()
        # A full disk must not hide how the run ended: a later call writes the event.
        with contextlib.suppress(OSError), contextlib.closing(EventLog(run.events_file)) as log:
            end = log.append(end)
    return fold([end], view)


def _sudden_end(run: RunFolder, view: RunView) -> Failed:
    step = run.resume_step()
    go_on = f"Resume goes on from step {step:,}" if step else "Start it again"
    if view.status == "queued" and view.attempts:
        return Failed(
            cause="The process of this run ended while it waited for its turn: it was killed, or the machine "
            "was restarted.",
            hint=f"Nothing is lost. {go_on}, and it waits for its turn.",
        )
    free = shutil.disk_usage(run.path).free
    if free < _FULL_DISK_BYTES:
        checkpoint = view.checkpoints[-1].num_bytes if view.checkpoints else 0
        missing = _FULL_DISK_BYTES + checkpoint - free
        return Failed(
            cause=f"The training process ended because the disk is full: {missing:,} bytes are missing.",
            hint=f"Free that much or more. {go_on}.",
        )
    lines = run.log_file.read_text(errors="replace").splitlines() if run.log_file.exists() else []
    return Failed(
        cause="The training process ended without a word: it was killed, the machine was restarted, "
        "or it ran out of memory.",
        hint=f"{go_on}; with a shorter max_length or a smaller batch if memory was short.",
        line=next((line for line in reversed(lines) if line.strip()), "")[:500],
    )
