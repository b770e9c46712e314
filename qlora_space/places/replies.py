"""How a child process answers: one JSON request in, replies and an end as JSON lines out."""

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from pydantic import BaseModel

from qlora_space.core.errors import QloraSpaceError

Message = dict[str, Any]  # one line, checked by the models inside it
Answer = Callable[[Message], Iterator[BaseModel]]
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


def write_replies(answer: Answer, message: Message, replies: TextIO) -> None:
    """Write what the answer yields, or why there is none, and the end. Raises OSError if nobody listens."""
    try:
        for value in answer(message):
            replies.write(value.model_dump_json() + "\n")
    except QloraSpaceError as error:
        write_line(replies, refused=[type(error).__name__, error.what, error.hint])
    except MemoryError:
        write_line(replies, ended="memory")
    # A panic of a library in Rust is no Exception.
    except BaseException as error:  # the boundary: answer, whatever happened
        log.error("A request failed.", exc_info=error)
        write_line(replies, crashed=one_line(error))
    write_line(replies, end=True)


def write_line(replies: TextIO, **line: object) -> None:
    replies.write(json.dumps(line) + "\n")


def one_line(error: BaseException) -> str:
    """Type and text of an error, in a line of at most 500 characters without its full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")
