"""How a child process answers: one JSON request in, replies and an end as JSON lines out."""

import contextlib
import errno
import gc
import json
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qlora_space.core.errors import DiskFull, QloraSpaceError
from qlora_space.core.events import Failed

Message = dict[str, Any]  # one line, checked by the models inside it
Answer = Callable[[Message], Iterator[BaseModel]]
_WHY: dict[int, str] = {
    signal.SIGXCPU: "time",
    signal.SIGABRT: "memory",  # what libraries in C++ and Rust do without it
    signal.SIGKILL: "memory",  # by the kernel; nobody listens when it was us
}
log = logging.getLogger(__name__)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import without garbage collection, and keep what was imported out of it later: modules are never garbage, and
    searching them for cycles takes one of the seven seconds of these imports (docs/LOG.md)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class NotHere(Exception):
    """The answer needs what this process may not do."""


class Ended(Exception):
    """Another process ended before it had answered: a key of the sentences in inspector.py."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def cause_of_death(status: int) -> str:
    """Of a status of os.waitpid: 'time', 'memory' or 'crash'; '' if the process ended by itself."""
    if not os.WIFSIGNALED(status):
        return "crash" if status else ""
    return _WHY.get(os.WTERMSIG(status), "crash")


def write_replies(answer: Answer, message: Message, write: Callable[[str], object]) -> None:
    """Write `reply_lines`. Raises OSError if nobody listens, NotHere as it is."""
    for line in reply_lines(answer, message):
        write(line)


def reply_lines(answer: Answer, message: Message) -> Iterator[str]:
    """What the answer yields, or why there is none, and the end. Raises NotHere as it is."""
    try:
        for value in answer(message):
            yield value.model_dump_json() + "\n"
    except QloraSpaceError as error:
        yield line_of(refused=[type(error).__name__, error.what, error.hint])
    except MemoryError:
        yield line_of(ended="memory")
    except Ended as error:
        yield line_of(ended=error.why)
    except (NotHere, GeneratorExit):
        raise
    # A panic of a library in Rust is no Exception.
    except BaseException as error:  # the boundary: answer, whatever happened
        log.error("A request failed.", exc_info=error)
        yield line_of(crashed=one_line(error))
    yield line_of(end=True)


def line_of(**reply: object) -> str:
    return json.dumps(reply) + "\n"


def failure_of(error: BaseException) -> Failed:
    """Whatever ended a run, as the event that says so."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = DiskFull("The disk is full.", "Free some space and start again.")
    if isinstance(error, QloraSpaceError):
        return Failed(cause=error.what, hint=error.hint)
    log.error("The run failed.", exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Failed(
        cause=f"Something unexpected happened in {Path(last.filename).name}.",
        hint="Look at the log below; if it does not help, report it with this line.",
        line=one_line(error),
    )


def one_line(error: BaseException) -> str:
    """Type and text of an error, in a line of at most 500 characters without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
