"""The page "Compare": the base and what a run made of it, side by side, and what was compared before."""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.ask_panel import PRIVATE, AskPanel, build_ask_panel, wire_ask_panel
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.compare_settings import CompareSettings, build_compare_settings
from qlora_space.app.ui.heldout_panel import HeldoutPanel, build_heldout_panel, wire_heldout_panel
from qlora_space.app.ui.links import copy_link, link_to
from qlora_space.app.ui.navigation import build_pick_list, parse_address, picked, run_at
from qlora_space.app.ui.render.compare import (
    Progress,
    panes,
    past_comparisons,
    prompt_chips,
)
from qlora_space.app.ui.render.html import empty, panel_title
from qlora_space.app.ui.votes_panel import VotesPanel, build_votes_panel, wire_votes_panel
from qlora_space.core.comparison import CompareOptions
from qlora_space.core.errors import RunError
from qlora_space.runs import RunFolder, RunView
from qlora_space.runs.comparisons import Comparison, comparison_lines, find_comparison

_CHIPS_SHOWN = 8
# What the URL says of a comparison; the address that Python knows names run and view alone.
_WITH_COMPARISON = "(query) => qlora.withComparison(query)"


@dataclass(frozen=True)
class _Page:
    title: gr.HTML
    missing: gr.HTML
    settings: CompareSettings
    ways: gr.Tabs
    ask: AskPanel
    heldout: HeldoutPanel
    votes: VotesPanel
    past: gr.HTML
    opened: gr.Textbox  # id of the comparison that is shown

    @property
    def outputs(self) -> list[Any]:
        return [
            *(*self.settings.fields, self.ways, *self.ask.outputs, *self.heldout.outputs),
            *self.votes.outputs,
            *(self.past, self.opened),
        ]

    def shown(self, acting: Actions, run: RunFolder, kept: Comparison | None) -> tuple[Any, ...]:
        """Values of `outputs`."""
        options = kept.options if kept else CompareOptions()
        name = kept.line.id if kept else ""
        past = past_comparisons(run.id, comparison_lines(run), name)
        settings = self.settings.opened(acting, run, options)
        is_many = kept is not None and len(kept.done.rows) > 1
        ways = gr.Tabs(selected="heldout" if is_many else "one")
        ask = self.ask.opened(None if is_many else kept)
        heldout = self.heldout.opened(acting, run, kept if is_many else None)
        return (*settings, ways, *ask, *heldout, *self.votes.opened(run), past, name)


def build_compare_page(actions: Actions, address: gr.Textbox, tab: gr.Tab) -> gr.Button:
    """Lay out and wire the page inside the current tab; returns the button that makes a dataset of votes."""
    page = _build_page()
    # In the browser, at once: nothing of another run is visible while this one is prepared.
    ask = page.ask
    heldout = page.heldout
    cleared = [page.title, ask.prompt, ask.expected, ask.status, heldout.status, heldout.table]
    cleared += [page.past, page.votes.pair, page.votes.standing, ask.panes]
    fresh = json.dumps([*[""] * (len(cleared) - 1), panes(Progress())])
    address.change(None, None, cleared, js=f"() => {fresh}", api_visibility="private")
    page.opened.change(
        None, page.opened, None, js="(id) => qlora.setComparison(id)", api_visibility="private"
    )
    wire_ask_panel(actions, address, ask, page.settings, page.opened)
    wire_heldout_panel(actions, address, page.heldout, page.settings, page.opened, ask, page.ways)
    wire_votes_panel(actions, address, page.votes, page.settings)
    _wire_past(actions, address, page)

    @for_visitor(actions)
    def prepare(acting: Actions, query: str) -> tuple[Any, ...]:
        run = run_at(acting, query)
        title = panel_title(f"“{run.name()}” and its base") + _copy_link(run)
        nothing = [gr.skip()] * len(page.outputs)
        if not run.has_adapter and not run.checkpoint_steps():
            missing = empty("There is no adapter to compare", _why_missing(acting.view(run)))
            return title, missing, "", gr.update(interactive=False), *nothing
        chips = prompt_chips(acting.heldout_questions(run, _CHIPS_SHOWN))
        kept = _kept(run, parse_address(query).comparison)
        return title, "", chips, gr.update(interactive=True), *page.shown(acting, run, kept)

    prepared = [page.title, page.missing, ask.chips, ask.run, *page.outputs]
    tab.select(prepare, address, prepared, js=_WITH_COMPARISON, concurrency_limit=None, **PRIVATE)
    return page.votes.dataset


def _build_page() -> _Page:
    title = gr.HTML(elem_id="compare-title")
    missing = gr.HTML(elem_id="compare-missing")
    with gr.Column(elem_classes="sheet"):
        settings = build_compare_settings()
    with gr.Tabs(selected="one", elem_id="ways") as ways:
        with gr.Tab("One prompt", id="one"):
            ask = build_ask_panel()
        with gr.Tab("Held-out", id="heldout"):
            heldout = build_heldout_panel()
        with gr.Tab("Blind votes", id="votes"):
            votes = build_votes_panel()
    with gr.Column(elem_classes="sheet", elem_id="past-panel"):
        gr.HTML('<h3 class="panel-title">Earlier comparisons</h3>')
        past = build_pick_list("", elem_id="past")
    opened = gr.Textbox("", visible=False)
    return _Page(title, missing, settings, ways, ask, heldout, votes, past, opened)


def _wire_past(actions: Actions, address: gr.Textbox, page: _Page) -> None:
    """One that is picked is opened; the list follows what is shown."""

    @for_visitor(actions)
    def reopen(acting: Actions, event: gr.EventData, query: str) -> tuple[Any, ...]:
        run = run_at(acting, query)
        return page.shown(acting, run, find_comparison(run, picked(event)))

    page.past.click(reopen, address, page.outputs, **PRIVATE)

    @for_visitor(actions)
    def relist(acting: Actions, query: str, shown: str) -> str:
        run = run_at(acting, query)
        return past_comparisons(run.id, comparison_lines(run), shown)

    page.opened.change(relist, [address, page.opened], page.past, **PRIVATE)


def _copy_link(run: RunFolder) -> str:
    """To what was published last, with the prompt that stands there; '' while nobody else could read it."""
    done = run.publications()
    return copy_link(link_to(done[-1]), "#prompt textarea") if done else ""


def _kept(run: RunFolder, comparison_id: str) -> Comparison | None:
    """Of the URL; one that is not there any more shows nothing."""
    try:
        return find_comparison(run, comparison_id) if comparison_id else None
    except RunError:
        return None


def _why_missing(view: RunView) -> str:
    match view.status:
        case "cancelled":
            return "The run was stopped and its adapter discarded."
        case "failed":
            return "The run failed before it saved one."
        case "paused":
            return "The run is paused: resume it to get one."
        case "finished":
            return "Its files are gone from this machine."
    return "It appears when the run is done."
