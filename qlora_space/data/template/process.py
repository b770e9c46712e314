"""Renders chat templates in a child process, which is killed when one takes too much time or memory."""

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from qlora_space.core import confinement
from qlora_space.core.errors import ModelError
from qlora_space.data.template.child import serve
from qlora_space.data.template.layout import TemplateRefused
from qlora_space.data.template.trace import TemplateTrace, parse_trace

_SCRIPT = Path(__file__).with_name("child.py")
_START_TIMEOUT_SECONDS = 60.0
_REPLY_TIMEOUT_SECONDS = 20.0  # of waiting; the child's own limit is 2 seconds of CPU
_MAX_REPLY_BYTES = 2**30
# So few that an honest template needs a small part of its time for them.
_JOBS_PER_REQUEST = 64
_CHARS_PER_REQUEST = 2**20
_FAILURES = {
    "cpu": "takes more than 2 seconds to write a conversation",
    "memory": "needs more than 512 MiB to write a conversation",
    "output": "writes more than 8 MiB for one conversation",
    "died": "made the process that renders it fail",
}


@dataclass(frozen=True)
class RenderJob:
    """One conversation to render, as the template takes it; and whether to report more than the text."""

    messages: tuple[dict[str, Any], ...]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    with_generation_spans: bool = False
    with_trace: bool = False


@dataclass(frozen=True)
class RenderResult:
    """What the template wrote; if requested, the spans of its {% generation %} blocks, and its trace.

    There is no trace of a template that does more than to ask about contents and join texts.
    """

    text: str
    generation_spans: tuple[tuple[int, int], ...] = ()
    trace: TemplateTrace | None = None


class TemplateProcess:
    """One child, started when first used and after every death. Safe to share between threads."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | ForkedChild | None = None
        self._lock = threading.Lock()
        self._is_forked = False

    def start_by_fork(self) -> None:
        """Start the child now, by a fork: at once, where what it needs was imported before, and with all that this
        process knows by then. For a process of one thread."""
        self._is_forked = True
        self._child = ForkedChild()
        self._read_reply(_START_TIMEOUT_SECONDS)

    def render(
        self, template: str, special_tokens: Mapping[str, Any], jobs: Sequence[RenderJob]
    ) -> list[RenderResult | TemplateRefused]:
        """A result for each job, or the template's own refusal, as apply_chat_template would give it.

        Raises ModelError for a template that takes too much time, memory or space.
        """
        common = {"template": template, "special_tokens": dict(special_tokens)}
        results: list[RenderResult | TemplateRefused] = []
        with self._lock:
            for chunk in _chunks(jobs):
                reply = self._request((json.dumps({**common, "jobs": chunk}) + "\n").encode())
                results += [_result(*each) for each in zip(reply["results"], chunk, strict=True)]
        return results

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close() if pipe else None
        self._child = None

    def _request(self, line: bytes) -> dict[str, Any]:
        try:
            child = self._running_child()
            assert child.stdin is not None
            child.stdin.write(line)
            child.stdin.flush()
            reply = self._read_reply(_REPLY_TIMEOUT_SECONDS)
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            failure = "cpu" if isinstance(error, TimeoutError) else self._cause_of_death()
            self.close()
            raise _template_error(failure) from error
        if "failed" in reply:
            self.close()  # frees what the child took
            raise _template_error(reply["failed"])
        return reply

    def _cause_of_death(self) -> str:
        if self._child is None:
            return "died"
        return "cpu" if self._child.wait() in (-signal.SIGXCPU, -signal.SIGKILL) else "died"

    def _running_child(self) -> "subprocess.Popen[bytes] | ForkedChild":
        if self._child is None or self._child.poll() is not None:
            if (
                self._is_forked
            ):  # by now this process has threads, and may be forbidden to start programs
                raise EOFError
            self.close()
            # -P: the script's folder is not for imports. -B: on a full disk Python 3.11 leaves half a .pyc
            # behind. The environment has none of our tokens.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-B", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_CHILD_VARIABLES},
            )
            self._read_reply(_START_TIMEOUT_SECONDS)
        return self._child

    def _read_reply(self, seconds: float) -> dict[str, Any]:
        """The next line. Raises TimeoutError, or EOFError if the child died."""
        assert self._child is not None
        assert self._child.stdout is not None
        deadline = time.monotonic() + seconds
        reply = bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(self._child.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(self._child.stdout.fileno(), 2**20)
                if not piece or len(reply) > _MAX_REPLY_BYTES:
                    raise EOFError
                reply += piece
        return json.loads(reply)


class ForkedChild:
    """A fork of this process that answers as the script does; what `TemplateProcess` needs of a Popen.

    It has no file of this process open, is killed with it, and opens no socket, program or new file.
    """

    def __init__(self) -> None:
        requests, self.stdin = _pipe()
        self.stdout, replies = _pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _serve_in_fork(requests.fileno(), replies.fileno(), parent)
        self._status: int | None = None
        requests.close()
        replies.close()

    def poll(self) -> int | None:
        """As Popen's: None while it lives, else its exit status, or the signal that ended it as a negative number."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        status = self._wait(0)
        assert status is not None
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)

    def _wait(self, flags: int) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self._pid, flags)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """Its ends to read from and to write to."""
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb")


def _serve_in_fork(requests: int, replies: int, parent: int) -> NoReturn:
    """Never returns."""
    try:
        confinement.die_with_parent(parent)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number, own in enumerate((requests, replies, nowhere)):
            os.dup2(own, number)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        confinement.allow_files(confinement.program_folders(), (), ports=())
        confinement.forbid_sockets_and_programs()
        serve(os.fdopen(0, "r", encoding="utf-8"), os.fdopen(1, "w", 1, encoding="utf-8"))
    finally:
        os._exit(1)


_CHILD_VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONIOENCODING": "utf-8",
}


def template_process() -> TemplateProcess:
    """The child of this process: two processes must not share a pipe."""
    return _process_of(os.getpid())


@cache
def _process_of(_pid: int) -> TemplateProcess:
    return TemplateProcess()


def _chunks(jobs: Sequence[RenderJob]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        value = {
            "messages": job.messages,
            "tools": job.tools,
            "add_generation_prompt": job.add_generation_prompt,
            "generation_spans": job.with_generation_spans,
            "trace": job.with_trace,
        }
        length = sum(map(_num_chars, job.messages))
        if chunk and (len(chunk) == _JOBS_PER_REQUEST or size + length > _CHARS_PER_REQUEST):
            yield chunk
            chunk, size = [], 0
        chunk.append(value)
        size += length
    if chunk:
        yield chunk


def _num_chars(message: dict[str, Any]) -> int:
    """About as many as its JSON has; for plain turns without writing it."""
    content = message["content"]
    is_plain = len(message) == 2 and isinstance(content, str)
    return len(content) + 32 if is_plain else len(str(message))


def _result(reply: dict[str, Any], job: dict[str, Any]) -> RenderResult | TemplateRefused:
    if "refused" in reply:
        return TemplateRefused(reply["refused"])
    generation_spans = tuple((start, end) for start, end in reply["generation_spans"])
    trace = reply["trace"]
    num_turns = len(job["messages"])
    return RenderResult(reply["text"], generation_spans, trace and parse_trace(trace, num_turns))


def _template_error(failure: str) -> ModelError:
    return ModelError(f"The base's chat template {_FAILURES[failure]}.", "Choose another base.")
