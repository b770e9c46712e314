"""Serve the page on the address that the settings name."""

import errno
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from gradio import http_server
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.actions import Actions
from qlora_space.app.following import keep_following
from qlora_space.app.publishing import keep_sending
from qlora_space.app.ui.border import Border
from qlora_space.app.ui.boundary import visitor_of_scope
from qlora_space.app.ui.downloads import Downloads
from qlora_space.app.ui.page import build_page
from qlora_space.app.ui.shared_page import page_script
from qlora_space.app.ui.stream import RunStreams
from qlora_space.app.ui.theme import build_theme
from qlora_space.app.ui.watch import Watching
from qlora_space.core.errors import BackendError
from qlora_space.core.settings import LOOPBACK, Home, Settings
from qlora_space.runs.cleaning import keep_clean

_HERE = Path(__file__).parent
_ADDRESS = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?")


class CompressedPage:
    """The page itself is 300 kB of HTML, which Gradio 6 sends as it is; it compresses scripts and styles."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._compressing = app, GZipMiddleware(app, compresslevel=6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and scope["path"] == "/"
        await (self._compressing if is_page else self._app)(scope, receive, send)


def launch_options(actions: Actions, page: gr.Blocks, watching: Watching) -> dict[str, Any]:
    """Style and limits of the server, its border, and its streams; the same for the app and for tests."""
    settings = actions.settings
    border = {"actions": actions, "pending": lambda: page._queue.pending_event_ids_session}

    def acting_for(scope: Scope) -> Actions:
        return actions.for_visitor(visitor_of_scope(actions, scope))

    script = page_script()
    return {
        "theme": build_theme(),
        "css_paths": _HERE / "style.css",
        "head": f'<meta name="color-scheme" content="light dark"><script>{script}</script>',
        "favicon_path": _HERE / "favicon.svg",
        "footer_links": ["api", "settings"],
        "run_history": False,
        "max_file_size": "200mb",
        "show_error": True,
        "strict_cors": True,
        "ssr_mode": False,  # a Space would start a second server, in Node, in front of this one
        "enable_monitoring": False,
        "app_kwargs": {
            "middleware": [
                Middleware(KnownHosts, allowed_hosts=allowed_hosts(settings)),
                Middleware(Border, **border),
                Middleware(CompressedPage),
                Middleware(RunStreams, watching=watching, acting_for=acting_for),
                Middleware(Downloads, acting_for=acting_for),
            ]
        },
    }


class KnownHosts(TrustedHostMiddleware):
    """Answers to names that it knows, and to addresses in digits: those the platform's probes use, and no stranger's
    page can have one (DNS rebinding needs a name)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        is_known = bool(_ADDRESS.fullmatch(host))
        await (self.app if is_known else super().__call__)(scope, receive, send)


def allowed_hosts(settings: Settings) -> list[str]:
    """Host names that the page answers to. A page for this machine alone refuses any other name that resolves to it
    (DNS rebinding); behind a proxy $GRADIO_ROOT_PATH holds the public name, on a Space $SPACE_HOST."""
    if settings.is_space and (space := os.environ.get("SPACE_HOST")):
        own = [name.strip() for name in os.environ.get("QLORA_SPACE_HOSTS", "").split(",")]
        return [*space.split(","), *LOOPBACK, *filter(None, own)]
    if settings.host not in LOOPBACK:
        return ["*"]
    public = urlsplit(os.environ.get("GRADIO_ROOT_PATH", "")).hostname
    return [*LOOPBACK, "*.gradio.live", *([public] if public else [])]


def warning(settings: Settings) -> str:
    """What it means to be reachable from a network; a Space has accounts for that."""
    if settings.is_space or not settings.is_reachable:
        return ""
    return (
        f"Anybody who reaches port {settings.port} of this machine acts as you: reads files as datasets, "
        "and publishes with your token."
    )


def serve(actions: Actions) -> None:
    """Block until interrupted. Raises BackendError if the port is taken."""
    settings = actions.settings
    if is_taken(settings):
        raise BackendError(
            f"Port {settings.port} on {settings.host} is in use.",
            "Stop what uses it, or set GRADIO_SERVER_PORT to another one.",
        )
    if risk := warning(settings):
        sys.stderr.write(f"{risk}\n")
    # Gradio's own folder for uploads is one in /tmp that everybody can read.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.home / "gradio"))
    # On a Space Gradio opens a second port, through which code is replaced while it runs.
    http_server.watchfn_spaces = lambda reloader: None
    if settings.is_space:
        keep_clean(Home(settings.home), settings.limits)
    else:
        keep_sending(actions)
        keep_following(actions)
    page, watching = build_page(actions), Watching(actions)
    options = launch_options(actions, page, watching)
    options |= {"server_name": settings.host, "server_port": settings.port}
    # gradio 6.31 asks itself for the page and gives up after 3 s, which a busy machine may need.
    page.launch(prevent_thread_lock=True, _frontend=False, **options)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Runs go on without the page.\n")
    finally:
        watching.close()  # a server waits for its streams
        page.close(verbose=False)


def is_taken(settings: Settings) -> bool:
    """Whether another process listens on the port. Gradio would raise a traceback."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As uvicorn does: a port that was closed a moment ago may be used again.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return error.errno in (errno.EADDRINUSE, errno.EACCES)
    return False
