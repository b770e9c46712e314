"""The address of a watched run: /runs/ID/stream sends its page once, then what changes, as server-sent events.

/runs/ID/now.json is the page once, for who sits behind a proxy that holds streams back. Neither enters Gradio's queue.
Who may see which run is for `find` to say.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable

from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.ui.pieces import ViewOptions, parse_view_options
from qlora_space.app.ui.watch import Viewer, Watching, gone
from qlora_space.core.errors import RequestError
from qlora_space.runs import RunFolder
from qlora_space.runs.folder import unknown_run

Find = Callable[[Scope, str], RunFolder | None]
"""The run with an id, which is any text, if who sent the request may see it. Blocks: it reads files."""

_PATH = re.compile(r"/runs/([^/]{1,64})/(stream|now\.json)")
_EVENTS = re.compile(r"\d{1,12}")
_CHECK_SECONDS = 15.0  # who may see a run is asked again so often
_RETRY = b"retry: 2000\n\n"
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


class RunStreams:
    """ASGI middleware that answers for the addresses of watched runs."""

    def __init__(self, app: ASGIApp, watching: Watching, find: Find) -> None:
        self._app, self._watching, self._find = app, watching, find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = scope["type"] == "http" and _PATH.fullmatch(_path(scope))
        if not match:
            await self._app(scope, receive, send)
            return
        response = await self._answer(scope, match[1], is_stream=match[2] == "stream")
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, run_id: str, *, is_stream: bool) -> Response:
        if scope["method"] != "GET":
            return PlainTextResponse("Only GET.", 405, {"Allow": "GET"})
        query = QueryParams(scope["query_string"])
        try:
            options = parse_view_options(query)
            seen = _num_seen(query, Headers(scope=scope))
        except RequestError as error:
            return PlainTextResponse(str(error), 400)
        run, *others = await asyncio.to_thread(self._found, scope, run_id, options)
        if run is None:
            return PlainTextResponse(str(unknown_run(run_id)), 404)
        visible = tuple(other for other in others if other is not None)
        viewer = Viewer(options, visible, seen)
        if not is_stream:
            return await self._now(run, viewer)
        return StreamingResponse(
            self._stream(scope, run, viewer), headers=_HEADERS, media_type="text/event-stream"
        )

    def _found(self, scope: Scope, run_id: str, options: ViewOptions) -> list[RunFolder | None]:
        return [self._find(scope, each) for each in (run_id, *options.others)]

    async def _stream(self, scope: Scope, run: RunFolder, viewer: Viewer) -> AsyncIterator[bytes]:
        yield _RETRY
        checked_at = time.monotonic()
        self._watching.join(run, viewer)
        try:
            async for message in viewer.messages(lambda: self._watching.join(run, viewer)):
                yield message.body
                if time.monotonic() - checked_at > _CHECK_SECONDS:
                    checked_at = time.monotonic()
                    if await asyncio.to_thread(self._find, scope, run.id) is None:
                        yield gone(unknown_run(run.id)).body
                        return
        finally:
            self._watching.leave(run, viewer)

    async def _now(self, run: RunFolder, viewer: Viewer) -> Response:
        """The first message by itself."""
        self._watching.join(run, viewer)
        try:
            message = await anext(viewer.messages(lambda: None))
        finally:
            self._watching.leave(run, viewer)
        if message.kind != "whole":
            return PlainTextResponse(str(unknown_run(run.id)), 404)
        return Response(message.text, headers=_HEADERS, media_type="application/json")


def _path(scope: Scope) -> str:
    """Below the server's own root, behind a proxy that names it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _num_seen(query: QueryParams, headers: Headers) -> int:
    """Events that the tab has seen. A browser that comes back says it in a header. Raises RequestError."""
    written = headers.get("last-event-id") or query.get("from") or "0"
    if not _EVENTS.fullmatch(written):
        raise RequestError(f"from is {written[:40]!r}.", "Reload the page.")
    return int(written)
