"""Renders chat templates in a child process that is killed when one takes too much time or memory."""

import contextlib
import json
import os
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
from typing import Any

from qlora_space.core.errors import ModelError
from qlora_space.data.template.layout import TemplateRefused
from qlora_space.data.template.trace import Recording, read_recording

_SCRIPT = Path(__file__).with_name("child.py")
_START_SECONDS = 60.0
_ANSWER_SECONDS = 20.0  # of waiting; the child's own limit is 2 seconds of CPU
_REPLY_BYTES = 2**30
# Little enough for an honest template to be done in a small part of its time.
_JOBS_AT_ONCE = 64
_BYTES_AT_ONCE = 2**20
_WHY = {
    "cpu": "takes more than 2 seconds to write a conversation",
    "memory": "needs more than 512 MiB to write a conversation",
    "output": "writes more than 8 MiB for one conversation",
    "died": "made the process that renders it fail",
}


@dataclass(frozen=True)
class Job:
    """One conversation to render, in the template's own terms."""

    messages: tuple[dict[str, Any], ...]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    with_marks: bool = False
    with_recording: bool = False


@dataclass(frozen=True)
class Page:
    """What the template wrote, and what else was asked for: places of generation markers, a recording.

    There is no recording of a template that does more than to put texts together.
    """

    text: str
    marked: tuple[tuple[int, int], ...] = ()
    recording: Recording | None = None


class TemplateProcess:
    """One child, started when first used and after every death. Safe to share between threads."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self, template: str, special_tokens: Mapping[str, Any], jobs: Sequence[Job]
    ) -> list[Page | TemplateRefused]:
        """A page for each job, or the template's own refusal, as apply_chat_template would give it.

        Raises ModelError for a template that takes too much time, memory or space.
        """
        start = {"template": template, "special_tokens": dict(special_tokens)}
        pages: list[Page | TemplateRefused] = []
        with self._lock:
            for chunk in _chunks(jobs):
                reply = self._ask((json.dumps({**start, "jobs": chunk}) + "\n").encode())
                pages += [_page(*each) for each in zip(reply["pages"], chunk, strict=True)]
        return pages

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close() if pipe else None
        self._child = None

    def _ask(self, line: bytes) -> dict[str, Any]:
        try:
            child = self._running_child()
            assert child.stdin is not None
            child.stdin.write(line)
            child.stdin.flush()
            reply = self._reply(_ANSWER_SECONDS)
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            why = "cpu" if isinstance(error, TimeoutError) else self._cause_of_death()
            self.close()
            raise _too_much(why) from error
        if "fatal" in reply:
            self.close()  # what it took is given back
            raise _too_much(reply["fatal"])
        return reply

    def _cause_of_death(self) -> str:
        assert self._child is not None
        return "cpu" if self._child.wait() in (-signal.SIGXCPU, -signal.SIGKILL) else "died"

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            # -P: the folder of the script is not for imports. -B: on a full disk Python 3.11 leaves half a
            # .pyc behind. No token of ours is in its environment.
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-B", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_SMALL},
            )
            self._reply(_START_SECONDS)
        return self._child

    def _reply(self, seconds: float) -> dict[str, Any]:
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
                if not piece or len(reply) > _REPLY_BYTES:
                    raise EOFError
                reply += piece
        return json.loads(reply)


_SMALL = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def template_process() -> TemplateProcess:
    """The one of this process: two processes must not share a pipe."""
    return _process_of(os.getpid())


@cache
def _process_of(_pid: int) -> TemplateProcess:
    return TemplateProcess()


def _chunks(jobs: Sequence[Job]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        value = {
            "messages": job.messages,
            "tools": job.tools,
            "prompt": job.add_generation_prompt,
            "marks": job.with_marks,
            "record": job.with_recording,
        }
        length = sum(map(_size, job.messages))
        if chunk and (len(chunk) == _JOBS_AT_ONCE or size + length > _BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append(value)
        size += length
    if chunk:
        yield chunk


def _size(message: dict[str, Any]) -> int:
    """Characters, about; plain turns are told from others without being written out."""
    content = message["content"]
    is_plain = len(message) == 2 and isinstance(content, str)
    return len(content) + 32 if is_plain else len(str(message))


def _page(reply: dict[str, Any], job: dict[str, Any]) -> Page | TemplateRefused:
    if "refused" in reply:
        return TemplateRefused(reply["refused"])
    marked = tuple((start, end) for start, end in reply["spans"])
    recording = reply["recording"]
    turns = len(job["messages"])
    return Page(reply["text"], marked, recording and read_recording(recording, turns))


def _too_much(why: str) -> ModelError:
    return ModelError(f"The base's chat template {_WHY[why]}.", "Choose another base.")
