"""A warm child process that answers requests in JSON lines: untrusted bytes and torch stay out of the web process."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from qlora_space.core.errors import BackendError, QloraSpaceError, error_named
from qlora_space.core.processes import kill_tree
from qlora_space.places.environment import child_environment, lent_gpu_environment

_Child = TypeVar("_Child", "subprocess.Popen[str]", "subprocess.Popen[bytes]")


class Service:
    """One child, one request at a time; started by the first request, killed when it hangs."""

    def __init__(
        self, name: str, log_folder: Path, timeout_seconds: float, *arguments: str
    ) -> None:
        self._name, self._arguments = name, arguments
        self._log_file = log_folder / f"{name}.log"
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def warm_up(self) -> None:
        """Start the child now, so that the first request does not wait for its imports."""
        with self._lock:
            self._running_child()

    def ask(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the replies. Raises the child's own QloraSpaceError, or BackendError if it died or hung."""
        with self._lock:
            child = self._running_child()
            assert child.stdin is not None
            is_done, failure = False, None
            try:
                child.stdin.write(json.dumps(message) + "\n")
                child.stdin.flush()
                while "end" not in (reply := self._next_reply()):
                    failure = self._failure(reply)
                    if failure is None:
                        yield reply
                is_done = True
            except BrokenPipeError as error:
                raise self._died() from error
            finally:
                # The caller left or the child broke: its next line would belong to this request.
                if not is_done:
                    self._kill()
            if failure is not None:
                raise failure

    def close(self) -> None:
        """Kill the child, which frees its memory."""
        self._kill()

    def _next_reply(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._timeout_seconds)
        except queue.Empty:
            hint = "Try again with less; if it happens again, look at the server's log."
            raise BackendError(
                f"There was no answer within {self._timeout_seconds:.0f} seconds.", hint
            ) from None
        if line is None:
            raise self._died()
        return json.loads(line)

    def _failure(self, reply: dict[str, Any]) -> QloraSpaceError | None:
        if "ended" in reply:
            return self._died()
        return error_of_child(reply, self._name, self._log_file.name)

    def _died(self) -> BackendError:
        return BackendError(
            f"The {self._name} process ended without an answer, most likely for lack of memory.",
            "Choose a smaller base or fewer bits, and try again.",
        )

    def _running_child(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = self._start_child()
            self._lines = queue.Queue()
            threading.Thread(target=_pump, args=(self._child, self._lines), daemon=True).start()
        return self._child

    def _start_child(self) -> "subprocess.Popen[str]":
        def start() -> "subprocess.Popen[str]":
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("a") as log:
                return subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "qlora_space.places.worker",
                        self._name,
                        *self._arguments,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=lent_gpu_environment() if self._name == "compare" else child_environment(),
                    text=True,
                    start_new_session=True,
                )

        return started_by_a_thread(self._name, self._log_file, start)

    def _kill(self) -> None:
        if self._child is not None:
            kill_tree(self._child.pid)
            self._child.wait()
            self._child = None


def started_by_a_thread(name: str, log_file: Path, start: Callable[[], _Child]) -> _Child:
    """The child, started by a thread that stays with it: the kernel kills it when that thread ends, which is not
    before the server does. Raises BackendError if it cannot be started."""
    started: Future[_Child] = Future()

    def stay() -> None:
        try:
            child = start()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(child)
            child.wait()

    threading.Thread(target=stay, daemon=True).start()
    try:
        return started.result()
    except OSError as error:
        raise BackendError(
            f"The {name} process could not be started: {error.filename or log_file}: {error.strerror}.",
            "Free some space, or set QLORA_SPACE_HOME to a folder that you may write to.",
        ) from error


def error_of_child(reply: dict[str, Any], name: str, log_name: str) -> QloraSpaceError | None:
    """The child's own error, or that this request crashed; None for a reply."""
    if "refused" in reply:
        return error_named(*reply["refused"])
    if "crashed" in reply:
        what = f"The {name} process failed: {reply['crashed']}."
        return BackendError(what, f"Look at {log_name} in the server's logs.")
    return None


def _pump(child: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put(None)
