"""How a child process answers: one JSON request in, replies and an end as JSON lines out."""

import contextlib
import gc
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from qlora_space.core.errors import QloraSpaceError

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
    """Write what the answer yields, or why there is none, and the end, as lines.

    Raises OSError if nobody listens, NotHere as it is.
    """
    try:
        for value in answer(message):
            write(value.model_dump_json() + "\n")
    except QloraSpaceError as error:
        write_line(write, refused=[type(error).__name__, error.what, error.hint])
    except MemoryError:
        write_line(write, ended="memory")
    except Ended as error:
        write_line(write, ended=error.why)
    except NotHere:
        raise
    # A panic of a library in Rust is no Exception.
    except BaseException as error:  # the boundary: answer, whatever happened
        log.error("A request failed.", exc_info=error)
        write_line(write, crashed=one_line(error))
    write_line(write, end=True)


def write_line(write: Callable[[str], object], **line: object) -> None:
    write(json.dumps(line) + "\n")


def one_line(error: BaseException) -> str:
    """Type and text of an error, in a line of at most 500 characters without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
