"""The first process of a job, when everything is installed: `python -m qlora_space.places.job_entry`.

It fetches the run from its private copy, starts a worker on it, prints each event as lines of the job's log
(job_lines.py), does what a label of the job asks for, and brings the copy up to date when the worker is done. The token
comes on stdin; environment and arguments hold none.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qlora_space.core.errors import HubError, HubUnavailable, QloraSpaceError
from qlora_space.core.logs import log_to_stderr
from qlora_space.core.settings import load_settings
from qlora_space.hub import fetch_copy
from qlora_space.hub.jobs import ASK_LABEL, job_state
from qlora_space.hub.mirror import push_copy
from qlora_space.places.environment import child_environment
from qlora_space.places.job_lines import lines_of
from qlora_space.places.owner_token import OwnerToken
from qlora_space.runs import RunFolder, read_events
from qlora_space.runs.folder import ControlRequest

REPO, NAMESPACE, JOB_ID = "QLORA_SPACE_JOB_REPO", "QLORA_SPACE_JOB_NAMESPACE", "JOB_ID"
TIMEOUT, STARTED_AT = "QLORA_SPACE_JOB_SECONDS", "QLORA_SPACE_JOB_STARTED_AT"
_TICK_SECONDS = 0.3
_ASK_SECONDS = float(os.environ.get("QLORA_SPACE_JOB_ASK_SECONDS", "10"))
_SAVE_SHARE, _MOST_SAVE_SECONDS = 0.15, 300.0  # of the timeout, to save and send what was learned
_TRIES, _WAIT_SECONDS = 5, 15.0
_CONTROL: dict[str, ControlRequest] = {"save": "save", "sample": "sample"}
log = logging.getLogger("qlora_space.places.job_entry")


def main(environment: Mapping[str, str] = os.environ) -> int:
    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    token = OwnerToken.from_stdin().newest
    try:
        run = fetch_copy(environment[REPO], load_settings().runs_folder, token)
    except QloraSpaceError as error:
        _say(f"The run could not be fetched: {error}")
        return 1
    return _Job(run, environment, token).execute()


def deadline_seconds(timeout_seconds: float, started_at: float, now: float) -> float:
    """Until the worker pauses, so that what it learned is saved and sent before the job is ended; at least a second."""
    keep = min(_MOST_SAVE_SECONDS, _SAVE_SHARE * timeout_seconds)
    return max(1.0, started_at + timeout_seconds - keep - now)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class _Tail:
    """What was added to a file since it was read last, in whole lines."""

    file: Path
    offset: int = 0

    def lines(self) -> list[bytes]:
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.splitlines()


class _Job:
    def __init__(self, run: RunFolder, environment: Mapping[str, str], token: str | None) -> None:
        self._run, self._environment, self._token = run, environment, token
        size = run.events_file.stat().st_size
        self._seq = len(read_events(run.events_file)[0])
        self._events, self._log = _Tail(run.events_file, size), _Tail(run.log_file)
        self._asked = ""

    def execute(self) -> int:
        worker = self._start_worker()
        signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        over = threading.Event()
        asking = threading.Thread(target=self._follow_labels, args=(over,), daemon=True)
        asking.start()
        while worker.poll() is None:
            self._print_new()
            time.sleep(_TICK_SECONDS)
        over.set()
        self._print_new()
        self._send_copy()
        return 0 if worker.returncode in (0, os.EX_TEMPFAIL) else 1

    def _start_worker(self) -> subprocess.Popen[bytes]:
        now = time.time()
        timeout = float(self._environment.get(TIMEOUT) or 0)
        started_at = float(self._environment.get(STARTED_AT) or now)
        seconds = deadline_seconds(timeout, started_at, now) if timeout else 0.0
        command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(self._run.path)]
        with self._run.log_file.open("ab") as output:
            worker = subprocess.Popen(
                [*command, "--in-job", f"{seconds:.1f}"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(),
            )
        assert worker.stdin is not None
        worker.stdin.write(f"{self._token or ''}\n".encode())
        worker.stdin.flush()
        return worker

    def _print_new(self) -> None:
        """Lines of the worker's log are marked: none of them can be taken for an event."""
        for line in self._log.lines():
            _say(f"worker: {line.decode('utf-8', 'replace')}")
        for line in self._events.lines():
            for part in lines_of(self._seq, line.decode()):
                _say(part)
            self._seq += 1

    def _follow_labels(self, over: threading.Event) -> None:
        """A running job can be reached by its labels alone."""
        job_id, namespace = self._environment.get(JOB_ID), self._environment.get(NAMESPACE, "")
        while job_id and not over.wait(_ASK_SECONDS):
            try:
                labels = job_state(namespace, job_id, self._token).labels
            except HubError as error:  # it may answer the next time
                log.warning("%s", error)
                continue
            self._do(labels.get(ASK_LABEL, ""))

    def _do(self, asked: str) -> None:
        if not asked or asked == self._asked:
            return
        self._asked, what = asked, asked.partition("-")[0]
        if what == "keep":
            self._run.ask_to_stop(keep=True)
        elif what in _CONTROL:
            self._run.ask_for(_CONTROL[what])

    def _send_copy(self) -> None:
        """With the end of the run: nothing else leaves this machine."""
        for number in range(1, _TRIES + 1):
            try:
                push_copy(self._run, self._environment[REPO], self._token)
                return
            except HubUnavailable as error:
                _say(f"The copy could not be sent (try {number} of {_TRIES}): {error}")
                time.sleep(_WAIT_SECONDS)
            except (QloraSpaceError, OSError) as error:
                _say(f"The copy could not be sent: {error}")
                return


if __name__ == "__main__":
    raise SystemExit(main())
