"""What a run's owner takes along as a file: a comparison that was kept, and the votes.

/runs/ID/comparisons/ID.json and /runs/ID/votes.jsonl
"""

import asyncio
import re
from collections.abc import Callable

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.actions import Actions
from qlora_space.app.ui.border import path_of
from qlora_space.core.errors import RunError
from qlora_space.runs.comparisons import find_comparison
from qlora_space.runs.votes import votes

_PATH = re.compile(r"/runs/([^/]{1,64})/(?:comparisons/([0-9a-f]{16})\.json|votes\.jsonl)")


class Exports:
    """ASGI middleware that answers for these addresses."""

    def __init__(self, app: ASGIApp, acting_for: Callable[[Scope], Actions]) -> None:
        self._app, self._acting_for = app, acting_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(path_of(scope)) if scope["type"] == "http" else None
        if match is None:
            await self._app(scope, receive, send)
            return
        acting = self._acting_for(scope)
        answer = await asyncio.to_thread(_export, acting, match[1], match[2])
        await answer(scope, receive, send)


def _export(acting: Actions, run_id: str, comparison_id: str | None) -> Response:
    try:
        run = acting.run(run_id)
        if comparison_id is None:
            name, kind = "votes.jsonl", "application/jsonl"
            body = "".join(f"{vote.model_dump_json()}\n" for vote in votes(run))
        else:
            name, kind = f"comparison-{comparison_id}.json", "application/json"
            body = find_comparison(run, comparison_id).model_dump_json(indent=1)
    except RunError as error:
        return PlainTextResponse(str(error), 404)
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    return Response(body, headers=headers, media_type=kind)
