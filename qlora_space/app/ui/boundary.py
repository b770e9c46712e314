"""Where errors become sentences: nothing raised below reaches a person as it is."""

import functools
import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.wording import without_folders

_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def shows_errors(handler: F) -> F:
    """QloraSpaceError -> its own words; anything else -> an id that is in the server's log."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streamed(*args: Any, **values: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **values)
            except Exception as error:
                raise _shown(error) from None

        return streamed  # type: ignore[return-value]

    @functools.wraps(handler)
    def called(*args: Any, **values: Any) -> Any:
        try:
            return handler(*args, **values)
        except Exception as error:
            raise _shown(error) from None

    return called  # type: ignore[return-value]


def expected(error: Exception) -> QloraSpaceError:
    """The error itself if a person can act on it, else one that names the line in the log."""
    if isinstance(error, QloraSpaceError):
        return type(error)(without_folders(error.what), without_folders(error.hint))
    number = secrets.token_hex(3).upper()
    _log.error("unexpected, id %s", number, exc_info=error)
    return QloraSpaceError(
        f"Something unexpected happened (id {number}).", "The details are in the server's log."
    )


def _shown(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    known = expected(error)
    # Gradio renders the message as HTML; programs read it too, so quotes stay as they are.
    return gr.Error(
        html.escape(str(known), quote=False), title="That did not work", print_exception=False
    )
