"""Markup shared by the pages: pure functions from values to escaped HTML.

Every text from a dataset, a model, a log or a person passes through `text`.
"""

import time
from collections.abc import Iterable, Sequence

from qlora_space.app.ui.render.charts import sparkline
from qlora_space.app.ui.render.escaped import text
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.facts import Hardware
from qlora_space.core.wording import age, gib, visible_name
from qlora_space.runs import RunFolder, RunView

_STATUS = {
    "queued": ("waiting", "Waiting"),
    "waiting": ("waiting", "Between slices"),
    "preparing": ("working", "Preparing"),
    "training": ("working", "Training"),
    "finishing": ("working", "Finishing"),
    "finished": ("done", "Done"),
    "failed": ("error", "Failed"),
    "cancelled": ("stopped", "Stopped"),
    "paused": ("waiting", "Paused"),
}
_LEVELS = {
    "error": ("error", "Error"),
    "warning": ("warning", "Warning"),
    "info": ("info", "Note"),
    "ok": ("done", "Ready"),
    "missing": ("missing", "Missing"),
}

_ICON_PATHS = {
    "waiting": '<circle cx="8" cy="8" r="5.5" stroke-dasharray="2 2.3"/>',
    "working": '<circle cx="8" cy="8" r="5.5" opacity=".35"/><path d="M8 2.5a5.5 5.5 0 0 1 5.5 5.5"/>',
    "done": '<path d="M3 8.5 6.5 12 13 4.5"/>',
    "error": '<path d="M4 4l8 8M12 4l-8 8"/>',
    "warning": '<path d="M8 2.5 14.2 13H1.8Z"/><path d="M8 6.5v3M8 11.3v.1"/>',
    "info": '<circle cx="8" cy="8" r="5.8"/><path d="M8 7.3V11M8 5v.1"/>',
    "stopped": '<rect x="4" y="4" width="8" height="8" rx="1"/>',
    "missing": '<circle cx="8" cy="8" r="5.5"/>',
    "copy": '<rect x="5.5" y="5.5" width="8" height="8" rx="1.5"/><path d="M10.5 3H4a1.5 1.5 0 0 0-1.5 1.5V11"/>',
    "chip": '<rect x="4.5" y="4.5" width="7" height="7" rx="1"/>'
    '<path d="M6.5 2v2M9.5 2v2M6.5 12v2M9.5 12v2M2 6.5h2M2 9.5h2M12 6.5h2M12 9.5h2"/>',
    "person": '<circle cx="8" cy="5.5" r="2.7"/><path d="M2.8 13.5c.6-2.8 2.7-4 5.2-4s4.6 1.2 5.2 4"/>',
}


def icon(name: str) -> str:
    """A line icon as inline SVG in the colour of the text; decoration only, the word beside it carries the meaning."""
    return f'<svg class="icon icon-{name}" viewBox="0 0 16 16" aria-hidden="true">{_ICON_PATHS[name]}</svg>'


def status_chip(view: RunView) -> str:
    if view.stalled_for(time.time()):
        return f'<span class="chip status-stalled">{icon("warning")}Stalled</span>'
    picture, word = _STATUS[view.status]
    if view.stopped_by_hand:
        word = "Stopped, kept"
    return f'<span class="chip status-{view.status}">{icon(picture)}{word}</span>'


def notice(level: str, what: str, hint: str = "", extra: str = "") -> str:
    """One finding: icon, word for the level, what it is, what to do. `extra` is markup of ours."""
    picture, word = _LEVELS[level]
    todo = f'<span class="notice-hint">{text(hint)}</span>' if hint else ""
    return (
        f'<div class="notice notice-{level}" role="{"alert" if level == "error" else "note"}">'
        f'{icon(picture)}<div><span class="notice-level">{word}: </span>'
        f'<span class="notice-what">{text(what)}</span> {todo}{extra}</div></div>'
    )


def error_notice(error: QloraSpaceError) -> str:
    return notice("error", error.what, error.hint)


def empty(title: str, hint: str = "") -> str:
    """A panel that has nothing to show yet: it says so, and what will fill it."""
    return f'<div class="empty"><strong>{text(title)}</strong><span>{text(hint)}</span></div>'


def reading(words: str) -> str:
    """A panel whose content is on its way: it says so, and keeps the place."""
    lines = "<i></i>" * 3
    return f'<div class="reading" role="status"><strong>{icon("working")}{text(words)}</strong>{lines}</div>'


def panel_title(words: str) -> str:
    return f'<h2 class="panel-title">{text(words)}</h2>'


def show_more(what: str) -> str:
    """A button that unfolds the panel it is in, and folds it again; keyboard.js."""
    return (
        f'<button type="button" class="more" data-more aria-label="Show more of {text(what)}">'
        "<span>Show more</span><span>Show less</span></button>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A line of small facts."""
    items = "".join(f"<li><span>{text(k)}</span> {text(v)}</li>" for k, v in pairs if v)
    return f'<ul class="facts">{items}</ul>'


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], name: str, css: str = "plain"
) -> str:
    """A table that scrolls inside its own frame; a focusable one, for the keyboard."""
    head = "".join(f'<th scope="col">{text(visible_name(c))}</th>' for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="table-frame {css}" tabindex="0" role="region" aria-label="{text(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def run_list(runs: Sequence[tuple[RunFolder, RunView]], names: dict[str, str]) -> str:
    """The sidebar. Each run is a link, so it opens in a new tab too; stream.js marks the one that is open."""
    if not runs:
        return empty("No runs yet", "The runs you start are kept here.")
    items = "".join(_run_item(run, view, names[run.id]) for run, view in runs)
    return f'<nav aria-label="Runs"><ul class="run-list">{items}</ul></nav>'


def _run_item(run: RunFolder, view: RunView, name: str) -> str:
    when = age(view.started_at) if view.started_at else "just now"
    return (
        f'<li><a href="?run={run.id}&view=run" data-pick="{run.id}">'
        f'<span class="run-name">{text(name)}</span><span class="run-age">{when}</span>'
        f"{status_chip(view)}{_spark(run, view)}{_publication(run)}</a></li>"
    )


def _publication(run: RunFolder) -> str:
    """Whether it was published, by the files that are there: the list is asked for often."""
    if run.unsent_push_file.is_file():
        return f'<span class="run-published">{icon("waiting")}Not published yet</span>'
    if run.publications_file.is_file():
        return f'<span class="run-published">{icon("done")}Published</span>'
    return ""


_sparks: dict[RunFolder, tuple[RunView, str]] = {}
_MOST_SPARKS = 256  # as many views are kept, too


def _spark(run: RunFolder, view: RunView) -> str:
    """Drawn again when there were events: the list is asked for every few seconds by every tab."""
    drawn = _sparks.get(run)
    if drawn is None or drawn[0] is not view:
        drawn = (view, sparkline(view.series("loss")))
        if len(_sparks) >= _MOST_SPARKS:
            _sparks.clear()
        _sparks[run] = drawn
    return drawn[1]


def brand() -> str:
    return (
        '<h1><a class="brand" href="?" data-pick=""><svg viewBox="0 0 32 32" aria-hidden="true">'
        '<rect width="32" height="32" rx="8"/><path class="faint" d="M7 8v7c0 6 4 9 9 9h9"/>'
        '<path d="M7 8c2 9 7 12 18 12.500"/><circle cx="25" cy="20.500" r="2.600"/></svg>'
        "<span>qlora_space</span></a></h1>"
    )


def device_chip(hardware: Hardware) -> str:
    """Where runs will train and what is free there."""
    free, name = f"{gib(hardware.free_gib)} of {gib(hardware.memory_gib)} free", hardware.name
    if hardware.num_gpus > 1:
        free, name = f"{free} each", f"{hardware.num_gpus} x {name}"
    return f'<span class="chip device">{icon("chip")}{text(name)}<small>{free}</small></span>'


def account_chip(name: str | None, is_space: bool = False) -> str:
    if name is None:
        local = "publishing needs a Hub token (<code>hf auth login</code>)"
        hint = "needed to start" if is_space else local
        return (
            f'<span class="chip account">{icon("person")}Not signed in<small>{hint}</small></span>'
        )
    return f'<span class="chip account">{icon("person")}Signed in as {text(name)}</span>'
