"""What every request meets before Gradio: which addresses exist, where it comes from, whose session it names, how
often it may come.

Gradio answers whoever knows a session's hash, which the browser chose, and has routes that this page does not use. So
the routes of the page are listed, and a hash belongs to the first visitor who used it.
"""

import asyncio
import json
import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_space.app.actions import Actions
from qlora_space.app.ui.admission import Admission
from qlora_space.app.ui.boundary import visitor_of_scope
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.visitor import Visitor

_HASH, _NAME = r"[A-Za-z0-9_-]{1,64}", r"[A-Za-z0-9_.-]{1,64}"
_PAGE = re.compile(
    r"/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(?:/\d{1,4})?|logout"
    r"|login/(?:huggingface|callback)|(?:static|assets|svelte)/[\w./@-]{1,200}"
    r"|gradio_api/(?:info/?|app_id|startup-events|theme\.css|upload_progress))?/?"
)
_STREAM = re.compile(
    rf"/gradio_api/(?:queue/data|heartbeat/({_HASH})|call/(?:v2/)?{_NAME}/({_HASH}))"
)
_CALL = re.compile(rf"/gradio_api/(?:queue/join|cancel|reset|(?:run|api|call|call/v2)/{_NAME})/?")
_DIRECT = re.compile(rf"/gradio_api/(?:run|api)/{_NAME}/?")  # does not wait in Gradio's queue
_UPLOAD = "/gradio_api/upload"
_OWN = re.compile(
    r"/health|/runs/(?:list\.json|[^/]{1,64}/(?:stream|now\.json|stop|adapter\.zip|metrics\.csv"
    r"|events\.jsonl|votes\.jsonl|comparisons/[0-9a-f]{16}\.json|exports/[a-z0-9-]{1,20}\.zip))"
    r"|/shared/[0-9a-f]{32}/[\w-]{1,64}(?:/(?:stream|now\.json))?"
)
_MAX_CALL_BYTES = 4 * 2**20
_MAX_SESSIONS = 20_000  # Gradio itself keeps the state of 10,000
_COOKIE = "qlora_visitor"
_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{22,64}")
_COOKIE_SECONDS = 30 * 86400
_READING = ("GET", "HEAD")


class Border:
    """ASGI middleware, inside the one that reads the session's cookie."""

    def __init__(
        self, app: ASGIApp, actions: Actions, pending: Callable[[], dict[str, set[str]]]
    ) -> None:
        """`pending`: ids of the calls that wait or run in Gradio's queue, by session hash."""
        self._app, self._actions, self._pending = app, actions, pending
        self._is_space = actions.settings.is_space
        self._admission = Admission(actions.settings.limits)
        self._owners: OrderedDict[str, str] = OrderedDict()  # of session hashes and event ids
        self._streams: Counter[str] = Counter()  # open ones of a visitor, by key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websocket
        visitor = visitor_of_scope(self._actions, scope)
        key, new_cookie = _key(scope, visitor)
        send = self._with_headers(send, new_cookie if path_of(scope) == "/" else "")
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._admit(scope, receive, send, visitor, key)

    async def _admit(
        self, scope: Scope, receive: Receive, send: Send, visitor: Visitor, key: str
    ) -> None:
        path = path_of(scope)
        if path == "/health":
            await PlainTextResponse("ok")(scope, receive, send)
        elif match := re.fullmatch(r"/runs/([^/]{1,64})/stop", path):
            await (await self._stop(match[1], scope, visitor))(scope, receive, send)
        elif path.endswith("/stream"):
            await self._watch(scope, receive, send, key)
        elif path == _UPLOAD:
            await self._upload(scope, receive, send, visitor, key)
        elif _CALL.fullmatch(path):
            await self._call(scope, receive, send, key)
        elif _STREAM.fullmatch(path) and not self._is_theirs(_named(scope), key):
            await _not_found()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        """For what no page of ours asks, and for what another site's page asks in the visitor's name."""
        method, path = scope["method"], path_of(scope)
        if method in _READING:
            exists = any(p.fullmatch(path) for p in (_PAGE, _STREAM, _OWN)) and not path.endswith(
                "/stop"
            )
        else:
            is_ours = _CALL.fullmatch(path) or path == _UPLOAD or path.endswith("/stop")
            exists = method == "POST" and bool(is_ours)
        if not exists:
            return _not_found()
        if method not in _READING and not is_same_origin(Headers(scope=scope)):
            return PlainTextResponse("Another site may not do this here.", 403)
        return None

    async def _call(self, scope: Scope, receive: Receive, send: Send, key: str) -> None:
        """One of Gradio's events."""
        wait = self._admission.seconds_to_wait(
            key, self._address(scope), is_direct=_is_direct(scope)
        )
        if self._is_space and wait:
            await _too_many(wait)(scope, receive, send)
            return
        body = await _read(receive, _MAX_CALL_BYTES)
        if body is None:
            await PlainTextResponse("This is too much to send at once.", 413)(scope, receive, send)
            return
        name = _session_hash(body)
        if name and not self._is_theirs(name, key):
            await _not_found()(scope, receive, send)
        elif (
            self._is_space and not _is_direct(scope) and self._num_pending(key) >= self._max_pending
        ):
            await _too_many(5.0)(scope, receive, send)
        else:
            await self._app(scope, _replayed(body, receive), self._noting_events(send, key))

    @property
    def _max_pending(self) -> int:
        return self._actions.settings.limits.pending_calls

    def _num_pending(self, key: str) -> int:
        return sum(
            len(ids) for name, ids in self._pending().items() if self._owners.get(name) == key
        )

    def _is_theirs(self, name: str, key: str) -> bool:
        """Whether this session hash or event id is that visitor's; whoever uses one first has it."""
        owner = self._owners.setdefault(name, key)
        self._owners.move_to_end(name)
        if len(self._owners) > _MAX_SESSIONS:
            self._owners.popitem(last=False)
        return secrets.compare_digest(owner.encode(), key.encode())

    def _noting_events(self, send: Send, key: str) -> Send:
        """The id of the event that Gradio answers with belongs to who asked."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.body" and (
                found := _event_id(message.get("body", b""))
            ):
                self._is_theirs(found, key)
            await send(message)

        return noting

    async def _upload(
        self, scope: Scope, receive: Receive, send: Send, visitor: Visitor, key: str
    ) -> None:
        """Refused before a byte is written where it would be too much."""
        size = Headers(scope=scope).get("content-length", "")
        wait = self._admission.seconds_to_wait(key, self._address(scope)) if self._is_space else 0.0
        if wait:
            await _too_many(wait)(scope, receive, send)
            return
        theirs = self._actions.for_visitor(visitor)
        try:
            await asyncio.to_thread(theirs.check_upload, int(size) if size.isdecimal() else None)
        except QloraSpaceError as error:
            await JSONResponse({"detail": str(error)}, 413)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _watch(self, scope: Scope, receive: Receive, send: Send, key: str) -> None:
        """A run's stream, one of as many as a visitor may have open."""
        whose = key if key != "anonymous" else f"anonymous {self._address(scope)}"
        if self._is_space and self._streams[whose] >= self._actions.settings.limits.streams:
            await _too_many(60.0)(scope, receive, send)
            return
        self._streams[whose] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams[whose] -= 1
            if not self._streams[whose]:
                del self._streams[whose]

    async def _stop(self, run_id: str, scope: Scope, visitor: Visitor) -> Response:
        """Stop a run without waiting for anybody's call; `?keep=false` discards the adapter."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        keep = query.get("keep", ["true"])[0] != "false"
        theirs = self._actions.for_visitor(visitor)
        try:
            run = await asyncio.to_thread(theirs.run, run_id)
        except QloraSpaceError as error:
            return JSONResponse({"detail": str(error)}, 404)
        try:
            await asyncio.to_thread(theirs.stop, run, keep)
        except QloraSpaceError as error:
            return JSONResponse({"detail": str(error)}, 409)
        return JSONResponse({"run_id": run.id, "status": theirs.view(run).status})

    def _address(self, scope: Scope) -> str:
        """Of the visitor: what the nearest trusted proxy says, whatever they claim themselves."""
        hops = Headers(scope=scope).get("x-forwarded-for", "").split(",")
        proxies = self._actions.settings.limits.proxies
        if self._is_space and proxies and len(hops) >= proxies and hops[-proxies].strip():
            return hops[-proxies].strip()[:64]
        return scope["client"][0] if scope.get("client") else ""

    def _with_headers(self, send: Send, new_cookie: str) -> Send:
        """The Hub may embed a Space's page; nobody else may, and no browser guesses types or tells where one was."""
        ancestors = (
            "'self' https://huggingface.co https://*.hf.space" if self._is_space else "'self'"
        )

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = f"frame-ancestors {ancestors}"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                if new_cookie and self._is_space:
                    headers.append("Set-Cookie", new_cookie)
            await send(message)

        return sending


def path_of(scope: Scope) -> str:
    """Below the server's own root, behind a proxy that names it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def is_same_origin(headers: Headers) -> bool:
    """Whether the request comes from a page of this server, or from no page at all."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    hosts = {headers.get("host", ""), headers.get("x-forwarded-host", "")} - {""}
    return urlsplit(origin).netloc in hosts


def _key(scope: Scope, visitor: Visitor) -> tuple[str, str]:
    """Who it is, as far as sessions and rates go, and the cookie to set: a random one parts strangers."""
    if not visitor.is_anonymous:
        return visitor.subject, ""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(Headers(scope=scope).get("cookie", ""))
    except Exception:  # one that a browser would not send
        cookies = SimpleCookie()
    value = cookies[_COOKIE].value if _COOKIE in cookies else ""
    if _COOKIE_VALUE.fullmatch(value):
        return f"anonymous {value}", ""
    made = secrets.token_urlsafe(24)
    attributes = "Path=/; HttpOnly; Secure; SameSite=None; Partitioned"
    return "anonymous", f"{_COOKIE}={made}; Max-Age={_COOKIE_SECONDS}; {attributes}"


def _named(scope: Scope) -> str:
    """The session hash or event id that a stream is asked for by."""
    match = _STREAM.fullmatch(path_of(scope))
    assert match is not None
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return match[1] or match[2] or query.get("session_hash", [""])[-1]


def _is_direct(scope: Scope) -> bool:
    return bool(_DIRECT.fullmatch(path_of(scope)))


async def _read(receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body; None if it is longer."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(messages, None) or await receive()

    return replay


def _session_hash(body: bytes) -> str:
    value = _json(body).get("session_hash")
    return value if isinstance(value, str) else ""


def _event_id(body: bytes) -> str:
    value = _json(body).get("event_id") if len(body) < 1000 else None
    return value if isinstance(value, str) else ""


def _json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _not_found() -> Response:
    return JSONResponse({"detail": "Not Found"}, 404)


def _too_many(seconds: float) -> Response:
    wait = max(1, round(seconds))
    detail = f"Too many requests: try again in {wait} s."
    return JSONResponse({"detail": detail}, 429, {"Retry-After": str(wait)})
