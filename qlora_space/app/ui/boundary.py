"""Where exceptions become sentences: no other exception reaches a visitor."""

import functools
import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import gradio as gr

from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.wording import without_folders

_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def shows_errors(handler: F) -> F:
    """A QloraSpaceError is shown in its own words, any other exception as an id that is in the server's log."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def streamed(*args: Any, **values: Any) -> Iterator[Any]:
            try:
                yield from handler(*args, **values)
            except Exception as error:
                raise _gradio_error(error) from None

        return cast("F", streamed)

    @functools.wraps(handler)
    def called(*args: Any, **values: Any) -> Any:
        try:
            return handler(*args, **values)
        except Exception as error:
            raise _gradio_error(error) from None

    return cast("F", called)


def as_qlora_space_error(error: Exception) -> QloraSpaceError:
    """The error itself if a person can act on it, else one that names the line in the log."""
    if isinstance(error, QloraSpaceError):
        return type(error)(without_folders(error.what), without_folders(error.hint))
    number = secrets.token_hex(3).upper()
    _log.error("unexpected, id %s", number, exc_info=error)
    return QloraSpaceError(
        f"Something unexpected happened (id {number}).", "The details are in the server's log."
    )


def _gradio_error(error: Exception) -> gr.Error:
    if isinstance(error, gr.Error):
        return error
    known = as_qlora_space_error(error)
    # Gradio renders the message as HTML; programs read it too, so quotes stay as they are.
    return gr.Error(
        html.escape(str(known), quote=False), title="That did not work", print_exception=False
    )
