"""What the browser asks for by itself; none of it enters Gradio's queue.

/runs/ID/stream: the page of a run once, then what changes, as server-sent events.
/runs/ID/now.json: that page once, for who sits behind a proxy that holds streams back.
/runs/list.json: the list of runs.
/shared/ID/KEY: the page of a run that its owner shares; below it a stream and a now.json of its own.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.actions import Actions
from qlora_space.app.ui.border import path_of
from qlora_space.app.ui.pieces import ViewOptions, parse_view_options
from qlora_space.app.ui.runs_list import read_listing
from qlora_space.app.ui.shared_page import nothing_shared, shared_page
from qlora_space.app.ui.watch import Viewer, Watching, gone
from qlora_space.core.errors import RequestError, RunError
from qlora_space.runs import RunFolder
from qlora_space.runs.folder import unknown_run
from qlora_space.runs.sharing import find_shared, not_shared

ActingFor = Callable[[Scope], Actions]
"""The actions of who sent the request."""

_LIST_PATH = "/runs/list.json"
_PATH = re.compile(r"/runs/([^/]{1,64})/(stream|now\.json)")
_SHARED_PATH = re.compile(r"/shared/([0-9a-f]{32})/([\w-]{1,64})(?:/(stream|now\.json))?")
_EVENTS = re.compile(r"\d{1,12}")
_CHECK_SECONDS = 15.0  # who may see a run is asked again so often
_BY_THE_CLOCK = "max-age=1"  # stream.js: by the clock, not because of what a person did
_LIST_SECONDS = 1.0
_MOST_LISTS = 256
_RETRY = b"retry: 2000\n\n"
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class _Asked:
    """A run that was asked for by somebody; a guest has no more than a link."""

    find: Callable[[], RunFolder]
    error: RunError
    is_guest: bool = False

    def found(self) -> RunFolder | None:
        """None where they may not see it. Reads files."""
        try:
            return self.find()
        except RunError:
            return None


@dataclass(frozen=True)
class _List:
    """A list of runs as JSON. `read_at` by the monotonic clock."""

    body: bytes
    read_at: float

    @functools.cached_property
    def _headers(self) -> dict[str, str]:
        return _HEADERS | {"ETag": f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'}

    def answer(self, scope: Scope) -> Response:
        """Without the list for a tab that has it already."""
        if Headers(scope=scope).get("if-none-match") == self._headers["ETag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self.body, headers=self._headers, media_type="application/json")


class RunStreams:
    """ASGI middleware that answers for these addresses."""

    def __init__(self, app: ASGIApp, watching: Watching, acting_for: ActingFor) -> None:
        self._app, self._watching, self._acting_for = app, watching, acting_for
        self._lists: dict[tuple[str, bytes], _List] = {}  # by visitor and query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope) if scope["type"] == "http" else ""
        match, shared = _PATH.fullmatch(path), _SHARED_PATH.fullmatch(path)
        app = self._app
        if path == _LIST_PATH:
            app = self._kept_list(scope) or await asyncio.to_thread(self._list, scope)
        elif match:
            asked = _Asked(lambda: self._acting_for(scope).run(match[1]), unknown_run(match[1]))
            app = await self._answer(scope, asked, is_stream=match[2] == "stream")
        elif shared:
            app = await self._answer_guest(scope, shared[1], shared[2], shared[3])
        await app(scope, receive, send)

    def _kept_list(self, scope: Scope) -> Response | None:
        """For a tab that asks by the clock, and takes what another tab of the visitor got a moment ago."""
        if Headers(scope=scope).get("cache-control") != _BY_THE_CLOCK:
            return None
        kept = self._lists.get(self._list_key(scope))
        is_new = kept is not None and time.monotonic() - kept.read_at < _LIST_SECONDS
        return kept.answer(scope) if kept and is_new else None

    def _list(self, scope: Scope) -> Response:
        """Reads files."""
        query, read_at = QueryParams(scope["query_string"]), time.monotonic()
        try:
            listing = read_listing(self._acting_for(scope), query)
        except RequestError as error:
            return PlainTextResponse(str(error), 400)
        made = _List(json.dumps(dataclasses.asdict(listing)).encode(), read_at)
        if len(self._lists) >= _MOST_LISTS:
            self._lists.clear()
        self._lists[self._list_key(scope)] = made
        return made.answer(scope)

    def _list_key(self, scope: Scope) -> tuple[str, bytes]:
        return self._acting_for(scope).visitor.subject, scope["query_string"]

    async def _answer_guest(
        self, scope: Scope, run_id: str, key: str, what: str | None
    ) -> Response:
        """Who has a link, whatever account they have."""
        folder = self._acting_for(scope).settings.runs_folder
        asked = _Asked(lambda: find_shared(folder, run_id, key), not_shared(), is_guest=True)
        if what:
            return await self._answer(scope, asked, is_stream=what == "stream")
        run = await asyncio.to_thread(asked.found)
        return shared_page(run) if run else nothing_shared(not_shared())

    async def _answer(self, scope: Scope, asked: _Asked, *, is_stream: bool) -> Response:
        if scope["method"] != "GET":
            return PlainTextResponse("Only GET.", 405, {"Allow": "GET"})
        query = QueryParams(scope["query_string"])
        try:
            options = parse_view_options(query)
            seen = _num_seen(query, Headers(scope=scope))
        except RequestError as error:
            return PlainTextResponse(str(error), 400)
        run = await asyncio.to_thread(asked.found)
        if run is None:
            return PlainTextResponse(str(asked.error), 404)
        others = () if asked.is_guest else await asyncio.to_thread(self._others, scope, options)
        viewer = Viewer(options, others, seen, is_guest=asked.is_guest)
        if not is_stream:
            return await self._now(run, viewer, asked)
        return StreamingResponse(
            self._stream(run, viewer, asked), headers=_HEADERS, media_type="text/event-stream"
        )

    def _others(self, scope: Scope, options: ViewOptions) -> tuple[RunFolder, ...]:
        """The runs to lay over this one that the visitor may see. Reads files."""
        acting = self._acting_for(scope)
        asked = [_Asked(partial(acting.run, each), unknown_run(each)) for each in options.others]
        return tuple(run for each in asked if (run := each.found()) is not None)

    async def _stream(self, run: RunFolder, viewer: Viewer, asked: _Asked) -> AsyncIterator[bytes]:
        yield _RETRY
        checked_at = time.monotonic()
        self._watching.join(run, viewer)
        try:
            async for message in viewer.messages(lambda: self._watching.join(run, viewer)):
                yield message.body
                if time.monotonic() - checked_at > _CHECK_SECONDS:
                    checked_at = time.monotonic()
                    if await asyncio.to_thread(asked.found) is None:
                        yield gone(asked.error).body
                        return
        finally:
            self._watching.leave(run, viewer)

    async def _now(self, run: RunFolder, viewer: Viewer, asked: _Asked) -> Response:
        """The first message by itself."""
        self._watching.join(run, viewer)
        try:
            message = await anext(viewer.messages(lambda: None))
        finally:
            self._watching.leave(run, viewer)
        if message.kind != "whole":
            return PlainTextResponse(str(asked.error), 404)
        return Response(message.text, headers=_HEADERS, media_type="application/json")


def _num_seen(query: QueryParams, headers: Headers) -> int:
    """Events that the tab has seen. A browser that comes back says it in a header. Raises RequestError."""
    written = headers.get("last-event-id") or query.get("from") or "0"
    if not _EVENTS.fullmatch(written):
        raise RequestError(f"from is {written[:40]!r}.", "Reload the page.")
    return int(written)
