"""Files of a run for its owner's own disk; like streams they do not enter Gradio's queue.

/runs/ID/adapter.zip: the adapter as PEFT has it, with the base's tokenizer.
/runs/ID/metrics.csv: every measured value by step.
/runs/ID/events.jsonl: everything that happened, as it was written.
/runs/ID/votes.jsonl: the votes on blind answers.
/runs/ID/comparisons/ID.json: a comparison that was kept.
/runs/ID/exports/FORMAT.zip: an export that was made.
"""

import asyncio
import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from qlora_space.app.ui.border import path_of
from qlora_space.app.ui.stream import ActingFor
from qlora_space.core.errors import RunError
from qlora_space.core.export import EXPORT_FILE, Exported
from qlora_space.hub.download import ADAPTER_FILES, TOKENIZER_FILES
from qlora_space.runs import RunFolder, read_events
from qlora_space.runs.comparisons import find_comparison
from qlora_space.runs.votes import votes

_PATH = re.compile(
    r"/runs/([^/]{1,64})/(adapter\.zip|metrics\.csv|(?:events|votes)\.jsonl|comparisons/[0-9a-f]{16}\.json"
    r"|exports/[a-z0-9-]{1,20}\.zip)"
)
_PIECE_BYTES = 2**20
_TYPES = {
    "zip": "application/zip", "csv": "text/csv", "json": "application/json", "jsonl": "application/jsonl",
}  # fmt: skip


def download_links(run_id: str, *, has_adapter: bool) -> str:
    """For the run's page."""
    words = {"metrics.csv": "Metrics (CSV)", "events.jsonl": "Events (JSON lines)"}
    words = ({"adapter.zip": "Adapter (zip)"} if has_adapter else {}) | words
    links = " · ".join(
        f'<a href="runs/{run_id}/{name}" download>{label}</a>' for name, label in words.items()
    )
    return f'<p class="downloads">Download: {links}</p>'


def export_link(run_id: str, format: str, words: str) -> str:
    """To an export that was made."""
    return f'<a href="runs/{run_id}/exports/{format}.zip" download>{words}</a>'


class Downloads:
    """ASGI middleware that answers for these addresses."""

    def __init__(self, app: ASGIApp, acting_for: ActingFor) -> None:
        self._app, self._acting_for = app, acting_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(path_of(scope)) if scope["type"] == "http" else None
        app = self._app
        if match:
            app = await asyncio.to_thread(self._answer, scope, match[1], match[2])
        await app(scope, receive, send)

    def _answer(self, scope: Scope, run_id: str, name: str) -> Response:
        if scope["method"] != "GET":
            return PlainTextResponse("Only GET.", 405, {"Allow": "GET"})
        try:
            run = self._acting_for(scope).run(run_id)
            content = _content(run, name)
        except RunError as error:
            return PlainTextResponse(str(error), 404)
        headers = {
            "Content-Disposition": f'attachment; filename="{run.id[:8]}-{name.replace("s/", "-")}"',
            "Cache-Control": "no-store",
        }
        return StreamingResponse(content, headers=headers, media_type=_TYPES[name.split(".")[1]])


def _content(run: RunFolder, name: str) -> Iterator[bytes]:
    """Raises RunError for an adapter, a comparison or an export that is not there."""
    match name:
        case "adapter.zip":
            if not run.has_adapter:
                raise RunError("This run has no adapter yet.", "Wait until it is done.")
            return zipped(run.adapter_folder, (*ADAPTER_FILES, *TOKENIZER_FILES))
        case "metrics.csv":
            return iter([metrics_csv(run).encode()])
        case "events.jsonl":
            return _pieces(run.events_file)
        case "votes.jsonl":
            return (f"{vote.model_dump_json()}\n".encode() for vote in votes(run))
        case _ if name.startswith("exports/"):
            folder = run.exports_folder / Path(name).stem
            if not (folder / EXPORT_FILE).is_file():
                raise RunError("There is no such export of this run.", "Make it first.")
            made = Exported.model_validate_json((folder / EXPORT_FILE).read_bytes())
            return zipped(folder, made.files)
        case _:
            kept = find_comparison(run, Path(name).stem)
            return iter([kept.model_dump_json(indent=1).encode()])


def zipped(folder: Path, names: tuple[str, ...]) -> Iterator[bytes]:
    """Those of the files that are there, stored as they are: weights do not become smaller."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            if not (folder / name).is_file():
                continue
            entry = zipfile.ZipInfo.from_file(folder / name, name)
            with archive.open(entry, "w") as target:
                for piece in _pieces(folder / name):
                    target.write(piece)
                    yield sink.take()
    yield sink.take()


def metrics_csv(run: RunFolder) -> str:
    """A row for each event with values, empty where it has none of that name."""
    metrics = [event for event in read_events(run.events_file)[0] if event.kind == "metric"]
    names = sorted({name for metric in metrics for name in metric.values})
    out = io.StringIO()
    table = csv.DictWriter(out, ["step", *names])
    table.writeheader()
    for metric in metrics:
        table.writerow({"step": metric.step, **metric.values})
    return out.getvalue()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            yield piece


class _Sink(io.RawIOBase):
    """What is written, until it is taken. It cannot be read back, so that an archive is never whole in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        self._parts.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
