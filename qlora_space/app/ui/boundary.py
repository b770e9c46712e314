"""Where a request becomes a visitor, and exceptions become sentences: nothing else reaches a handler, or a visitor."""

import dataclasses
import functools
import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.visitor import THIS_MACHINE, Visitor, from_session
from qlora_space.core.wording import visible, without_folders

_log = logging.getLogger(__name__)
_GPU_TOKEN = "x-ip-token"  # a Space's platform writes it: whose ZeroGPU quota a request may use
F = TypeVar("F", bound=Callable[..., Any])


def for_visitor(actions: Actions) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an event handler of a function that takes the visitor's own actions first.

    Gradio passes the request and the token; the handler sees neither. Errors are shown as by `shows_errors`.
    """

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        def theirs(http: gr.Request, oauth: gr.OAuthToken | None) -> Actions:
            visitor = visitor_of(actions, http, oauth)
            paying = dataclasses.replace(visitor, gpu_token=http.headers.get(_GPU_TOKEN, ""))
            return actions.for_visitor(paying, http.session_hash or "")

        def called(http: gr.Request, oauth: gr.OAuthToken | None, *args: Any, **values: Any) -> Any:
            return handler(theirs(http, oauth), *args, **values)

        def streamed(
            http: gr.Request, oauth: gr.OAuthToken | None, *args: Any, **values: Any
        ) -> Iterator[Any]:
            yield from handler(theirs(http, oauth), *args, **values)

        is_stream = inspect.isgeneratorfunction(handler)
        return shows_errors(_with_signature(streamed if is_stream else called, handler))

    return decorate


def _with_signature(called: Callable[..., Any], handler: Callable[..., Any]) -> Callable[..., Any]:
    """Gradio reads from it what to pass, and makes the API's schema of it."""
    own = inspect.signature(called, eval_str=True)
    theirs = inspect.signature(handler, eval_str=True)
    given = [*list(own.parameters.values())[:2], *list(theirs.parameters.values())[1:]]
    called.__name__, called.__doc__ = handler.__name__, handler.__doc__
    called.__signature__ = theirs.replace(parameters=given)  # type: ignore[attr-defined]
    hints = {p.name: p.annotation for p in given} | {"return": theirs.return_annotation}
    called.__annotations__ = {name: hint for name, hint in hints.items() if hint is not own.empty}
    return called


def visitor_of(actions: Actions, request: gr.Request, token: gr.OAuthToken | None) -> Visitor:
    """Who makes this request: by the signed cookie of a Space, else by the token that a program passes."""
    visitor = visitor_of_scope(actions, getattr(request.request, "scope", {}))
    if visitor.is_anonymous and token is not None:
        return actions.visitor_with_token(token.token)
    return visitor


def visitor_of_scope(actions: Actions, scope: Mapping[str, Any]) -> Visitor:
    """Who sends this ASGI request, by the signed cookie of a Space alone."""
    return from_session(scope.get("session")) if actions.settings.is_space else THIS_MACHINE


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
        html.escape(visible(str(known)), quote=False),
        title="That did not work",
        print_exception=False,
    )
