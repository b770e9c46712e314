"""The sidebar: the list of runs, searched, filtered and sorted, and several deleted at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.navigation import ON_ASK, build_pick_list, parse_address
from qlora_space.app.ui.new_run import training_now
from qlora_space.app.ui.render.html import empty, run_list, text
from qlora_space.core.errors import RequestError, RunError
from qlora_space.core.wording import counted
from qlora_space.runs import RunFolder, RunView

_VIEWER: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}
_STATUSES = [
    ("All", ""),
    ("In progress", "live"),
    ("Done", "finished"),
    ("Stopped", "cancelled"),
    ("Paused", "paused"),
    ("Failed", "failed"),
]
_ORDERS = [
    ("Newest", "newest"),
    ("Oldest", "oldest"),
    ("Name", "name"),
    ("Lowest held-out loss", "loss"),
]
_MOST_WORDS = 200  # characters
Found = Sequence[tuple[RunFolder, RunView]]


@dataclass(frozen=True)
class RunsList:
    """The components of the sidebar that change."""

    new: gr.Button
    busy: gr.HTML
    search: gr.Textbox
    status: gr.Dropdown
    order: gr.Dropdown
    runs: gr.HTML
    select: gr.Button
    selection: gr.Column
    picked: gr.CheckboxGroup
    delete: gr.Button
    done: gr.Button
    confirm: gr.Column
    question: gr.HTML
    answers: list[gr.Button]


def build_runs_list() -> RunsList:
    """Inside the sidebar."""
    with gr.Column(elem_id="runs-head"):  # stays in reach when the list is long
        new = gr.Button("New run", variant="primary", elem_id="new-run-button")
        busy = gr.HTML(elem_id="busy", js_on_load=ON_ASK)
        with gr.Column(elem_id="runs-tools"):
            search = gr.Textbox(
                "", show_label=False, label="Search runs", placeholder="Search runs", max_lines=1,
                elem_id="runs-search", container=False,
            )  # fmt: skip
            with gr.Row(elem_id="runs-filters"):
                status, order = (
                    gr.Dropdown(
                        choices, value=choices[0][1], label=label, elem_id=f"runs-{name}", min_width=90,
                    )
                    for name, label, choices in (
                        ("status", "Show", _STATUSES), ("order", "Sort by", _ORDERS),
                    )
                )  # fmt: skip
    runs = build_pick_list("", elem_id="runs")
    select = gr.Button("Select runs to delete", size="sm", elem_id="runs-select")
    with gr.Column(visible=False, elem_id="runs-selection") as selection:
        picked = gr.CheckboxGroup([], label="Runs to delete", elem_id="runs-picked")
        with gr.Row():
            delete = gr.Button("Delete …", size="sm", interactive=False, elem_id="runs-delete")
            done = gr.Button("Cancel", size="sm", elem_id="runs-cancel")
    with gr.Column(visible=False, elem_classes="confirmation", elem_id="confirm-runs") as confirm:
        question = gr.HTML()
        yes = gr.Button("Delete", variant="stop", size="sm", elem_id="runs-delete-now")
        no = gr.Button("Cancel", size="sm", elem_classes="cancel")
    return RunsList(
        new, busy, search, status, order, runs, select, selection, picked, delete, done, confirm,
        question, [yes, no],
    )  # fmt: skip


def matching(found: Found, names: dict[str, str], words: str, status: str, order: str) -> Found:
    """Those whose name has all the words and whose status is asked for, in that order."""
    wanted = words.casefold().split()
    kept = [
        (run, view)
        for run, view in found
        if all(word in names[run.id].casefold() for word in wanted) and _has_status(view, status)
    ]
    match order:
        case "oldest":
            return kept[::-1]
        case "name":
            return sorted(kept, key=lambda each: names[each[0].id].casefold())
        case "loss":
            return sorted(kept, key=lambda each: _lowest_loss(each[1]))
    return kept


@dataclass(frozen=True)
class Listing:
    """The list as a tab asked for it. `busy`: what trains now, in words."""

    runs: str
    count: int
    busy: str


def read_listing(acting: Actions, query: Mapping[str, str]) -> Listing:
    """From the query of an address: words=, status=, order=. Raises RequestError."""
    words = query.get("words", "")[:_MOST_WORDS]
    status = _one_of(_STATUSES, query.get("status", ""), "status")
    order = _one_of(_ORDERS, query.get("order", "newest"), "order")
    found = acting.runs()
    names = {run.id: run.name() for run, _ in found}
    kept = matching(found, names, words, status, order)
    runs = run_list(kept, names)
    if found and not kept:
        runs = empty("No run matches", "Change the search or what is shown.")
    return Listing(runs, len(found), acting.busy_name())


def _one_of(choices: Sequence[tuple[str, str]], value: str, name: str) -> str:
    if value not in (known for _, known in choices):
        raise RequestError(f"{name} is {value[:40]!r}.", "Reload the page.")
    return value


def _has_status(view: RunView, status: str) -> bool:
    return not status or (not view.is_over if status == "live" else view.status == status)


def _lowest_loss(view: RunView) -> float:
    return min((loss for _, loss in view.series("eval_loss")), default=math.inf)


def wire_runs_list(
    actions: Actions, sidebar: RunsList, address: gr.Textbox, busy: gr.State
) -> None:
    """The list itself comes by stream.js, which says when another run has the machine."""

    @for_visitor(actions)
    def read_busy(acting: Actions) -> str:
        return training_now(acting)

    filters = [sidebar.search, sidebar.status, sidebar.order]
    gr.on(
        [each.change for each in filters],
        None,
        filters,
        None,
        js="(words, status, order) => qlora.chooseRuns(words, status, order)",
        api_visibility="private",
    )
    sidebar.busy.click(read_busy, None, busy, trigger_mode="always_last", **_VIEWER)
    _wire_selection(actions, sidebar, filters)
    _wire_delete(actions, sidebar, address)


def _wire_selection(actions: Actions, sidebar: RunsList, filters: list[Any]) -> None:
    """Check boxes in place of the links, for the runs that are over."""

    @for_visitor(actions)
    def select(acting: Actions, words: str, status: str, order: str) -> dict[Any, Any]:
        found = acting.runs()
        names = {run.id: run.name() for run, _ in found}
        kept = matching(found, names, words, status, order)
        choices = [(names[run.id], run.id) for run, view in kept if view.is_over]
        return _selecting(sidebar, True) | {sidebar.picked: gr.update(choices=choices, value=[])}

    def count(ids: list[str]) -> dict[str, Any]:
        words = f"Delete {counted(len(ids), 'run')} …" if ids else "Delete …"
        return gr.update(value=words, interactive=bool(ids))

    outputs = [sidebar.runs, sidebar.select, sidebar.selection, sidebar.picked, sidebar.confirm]
    sidebar.select.click(select, filters, outputs, **_VIEWER)
    gr.on(
        [each.change for each in filters],
        lambda: _selecting(sidebar, False),
        None,
        outputs,
        **_VIEWER,
    )
    sidebar.done.click(lambda: _selecting(sidebar, False), None, outputs, **_VIEWER)
    sidebar.picked.change(count, sidebar.picked, sidebar.delete, **_VIEWER)


def _selecting(sidebar: RunsList, is_on: bool) -> dict[Any, Any]:
    return {
        sidebar.runs: gr.update(visible=not is_on),
        sidebar.select: gr.update(visible=not is_on),
        sidebar.selection: gr.update(visible=is_on),
        sidebar.confirm: gr.update(visible=False),
    }


def _wire_delete(actions: Actions, sidebar: RunsList, address: gr.Textbox) -> None:
    yes, no = sidebar.answers

    def ask(ids: list[str]) -> tuple[Any, ...]:
        which = counted(len(ids), "run")
        question = f"<strong>Delete {which} with adapters and logs? This cannot be undone.</strong>"
        return gr.update(visible=True), question, gr.update(value=f"Delete {which}")

    @for_visitor(actions)
    def remove(acting: Actions, ids: list[str], query: str) -> dict[Any, Any]:
        for run_id in ids:
            try:
                acting.delete(acting.run(run_id))
            except RunError as error:  # deleted in another tab, or resumed
                gr.Warning(text(error))
        is_open = parse_address(query).run_id in ids
        return _selecting(sidebar, False) | {address: "" if is_open else gr.skip()}

    sidebar.delete.click(ask, sidebar.picked, [sidebar.confirm, sidebar.question, yes], **_VIEWER)
    outputs = [sidebar.runs, sidebar.select, sidebar.selection, sidebar.confirm, address]
    removed = yes.click(remove, [sidebar.picked, address], outputs, **_VIEWER)
    removed.then(None, js="() => qlora.refreshList()", api_visibility="private")
    no.click(lambda: gr.update(visible=False), None, sidebar.confirm, **_VIEWER)
