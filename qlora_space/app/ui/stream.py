"""What the browser asks for by itself; none of it enters Gradio's queue.

/runs/ID/stream: the page of a run once, then what changes, as server-sent events.
/runs/ID/now.json: that page once, for who sits behind a proxy that holds streams back.
/runs/list.json: the list of runs.
"""

import asyncio
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable

from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.actions import Actions
from qlora_space.app.ui.border import path_of
from qlora_space.app.ui.pieces import ViewOptions, parse_view_options
from qlora_space.app.ui.runs_list import read_listing
from qlora_space.app.ui.watch import Viewer, Watching, gone
from qlora_space.core.errors import RequestError, RunError
from qlora_space.runs import RunFolder
from qlora_space.runs.folder import unknown_run

ActingFor = Callable[[Scope], Actions]
"""The actions of who sent the request."""

_LIST_PATH = "/runs/list.json"
_PATH = re.compile(r"/runs/([^/]{1,64})/(stream|now\.json)")
_EVENTS = re.compile(r"\d{1,12}")
_CHECK_SECONDS = 15.0  # who may see a run is asked again so often
_RETRY = b"retry: 2000\n\n"
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


class RunStreams:
    """ASGI middleware that answers for these addresses."""

    def __init__(self, app: ASGIApp, watching: Watching, acting_for: ActingFor) -> None:
        self._app, self._watching, self._acting_for = app, watching, acting_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        match = _PATH.fullmatch(path)
        app = self._app
        if path == _LIST_PATH:
            app = await asyncio.to_thread(self._list, scope)
        elif match:
            app = await self._answer(scope, match[1], is_stream=match[2] == "stream")
        await app(scope, receive, send)

    def _list(self, scope: Scope) -> Response:
        """Not sent to a tab that has it already."""
        query = QueryParams(scope["query_string"])
        try:
            listing = read_listing(self._acting_for(scope), query)
        except RequestError as error:
            return PlainTextResponse(str(error), 400)
        body = json.dumps(dataclasses.asdict(listing)).encode()
        headers = _HEADERS | {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}
        if Headers(scope=scope).get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

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

    def _find(self, scope: Scope, run_id: str) -> RunFolder | None:
        """The run with an id, which is any text, if who sent the request may see it. Reads files."""
        try:
            return self._acting_for(scope).run(run_id)
        except RunError:
            return None

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


def _num_seen(query: QueryParams, headers: Headers) -> int:
    """Events that the tab has seen. A browser that comes back says it in a header. Raises RequestError."""
    written = headers.get("last-event-id") or query.get("from") or "0"
    if not _EVENTS.fullmatch(written):
        raise RequestError(f"from is {written[:40]!r}.", "Reload the page.")
    return int(written)
