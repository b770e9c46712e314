"""The page of a run that its owner shares by a link. It is no page of Gradio: nothing can be pressed that changes
anything, and the server has no state for it. The stream fills it, as it fills the owner's (stream.js).
"""

import functools
import secrets
from pathlib import Path

from starlette.responses import HTMLResponse

from qlora_space.app.ui.render.html import brand, notice, text
from qlora_space.app.ui.render.samples import STEP_SLIDER
from qlora_space.core.errors import RunError
from qlora_space.runs import RunFolder

_HERE = Path(__file__).parent
_SCRIPTS = ("page", "keyboard", "data", "log", "stream")
_HEADERS = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}
_PAGE = """<!doctype html>
<html lang="en" data-shared="{run_id}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<base href="../../">
<title>{title}</title>
<link rel="icon" href="favicon.ico">
<link rel="stylesheet" href="theme.css">
<style>{style}</style>
<script nonce="{nonce}">{script}</script>
</head>
<body class="gradio-container shared">
<script nonce="{nonce}">
document.body.classList.toggle("dark", matchMedia("(prefers-color-scheme: dark)").matches);
qlora.started();
</script>
<main class="contents">
<header>{brand}</header>
{body}
</main>
</body>
</html>
"""
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'nonce-{nonce}'; "
    "base-uri 'self'; form-action 'none'"
)


@functools.cache
def page_script() -> str:
    """All scripts of the page as one."""
    return "".join((_HERE / f"{name}.js").read_text() for name in _SCRIPTS)


def shared_page(run: RunFolder) -> HTMLResponse:
    """Of a run that its visitor may see. Rows of a dataset that is not public are nowhere on it."""
    samples = _samples() if run.plan().dataset.is_public else ""
    body = (
        f"{_piece('run-head')}{_piece('run-outcome')}"
        '<section class="sheet" id="charts"><div id="chart-options" data-chart-options>'
        '<label><input type="checkbox" value="smooth" checked> Smooth</label>'
        '<label><input type="checkbox" value="log"> Log scale</label></div>'
        f"{_piece('charts-body')}"
        '<label id="steps-shown">Steps shown <input type="text" placeholder="all"></label>'
        f"</section>{samples}"
    )
    return _page("A shared run", body, run.id)  # not by its name: a tab called "Sign in" is a lure


def nothing_shared(error: RunError) -> HTMLResponse:
    """In the same words for a link that never was one and for one that is none any more."""
    return _page("Nothing is shared here", notice("info", error.what, error.hint), status=404)


def _page(title: str, body: str, run_id: str = "", status: int = 200) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    content = _PAGE.format(
        run_id=run_id,
        nonce=nonce,
        policy=_POLICY.format(nonce=nonce),
        title=text(f"{title} · qlora_space"),
        style=_style(),
        script=page_script(),
        brand=brand(),
        body=body,
    )
    return HTMLResponse(content, status, _HEADERS)


def _samples() -> str:
    return (
        '<section class="sheet" id="samples-panel"><h3 class="panel-title">Sample answers</h3>'
        f'{_piece("timeline")}<div id="sample-step">{STEP_SLIDER}</div>{_piece("samples")}</section>'
    )


def _piece(name: str) -> str:
    """Where the stream puts a piece of this id."""
    return f'<div id="{name}"><div class="prose"></div></div>'


@functools.cache
def _style() -> str:
    return (_HERE / "style.css").read_text()
