"""The frame: header, list of runs, and which page is shown. The URL names the page and the run."""

from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.copies import may_keep_copies
from qlora_space.app.ui.adapter_page import AdapterPage, build_adapter_page
from qlora_space.app.ui.api import add_api
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.compare_page import build_compare_page
from qlora_space.app.ui.copies import build_copies, wire_copies
from qlora_space.app.ui.navigation import PAGES, build_pick_list, parse_address, picked, run_at
from qlora_space.app.ui.new_run import NewRun, build_new_run
from qlora_space.app.ui.own_space import build_own_space
from qlora_space.app.ui.publish_page import build_publish_page, send_on_load
from qlora_space.app.ui.published_box import wire_published_box
from qlora_space.app.ui.render.html import account_chip, brand, device_chip, text
from qlora_space.app.ui.run_page import RunPage, build_run_page
from qlora_space.app.ui.runs_list import build_runs_list, wire_runs_list
from qlora_space.app.ui.sliced import wire_keep_going
from qlora_space.app.ui.votes_panel import preference_dataset
from qlora_space.core.errors import RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import next_name

TITLE = "qlora_space"
_VIEWER: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}
_SKIP = '<a href="?" data-skip>Skip to Start or to the run</a>'
# Settings that belong to one dataset.
_OF_ANY_DATASET = {
    name: field.default
    for name, field in TrainingRequest.model_fields.items()
    if name.startswith("dataset") or name in ("format", "columns", "instruction", "eval_split")
}
_UPLOADS_SECONDS = (3600, 86400)  # Gradio's copies: checked every hour, kept for a day
_QUEUE_SECONDS = 0.01  # less than a frame of a screen
_PROGRESS_SECONDS = 0.1  # for gr.Progress, which this page does not use


def build_page(actions: Actions) -> gr.Blocks:
    """The whole app."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=_UPLOADS_SECONDS
    ) as page:
        # Client-side state: JavaScript writes it into the URL, Python opens what it names.
        address = gr.Textbox("", visible=False)
        gr.HTML(_SKIP, elem_id="skip")
        with gr.Sidebar(width=288, elem_id="sidebar"):
            sidebar = build_runs_list()
            copies = build_copies()
            build_own_space(actions)
        device, account, home = _header(actions)
        busy = gr.State(None)  # name of the run that trains now; None: not known yet
        origin = gr.State("")  # id of the run whose settings fill the form
        new_run = build_new_run(actions, address, busy, origin)
        with gr.Column(visible=False, elem_id="run-page") as run_column:
            run_page, tabs, of_votes = _run_tabs(actions, address)
        linked = build_adapter_page(actions)
        _route(actions, address, (new_run, linked), run_column, tabs, run_page)
        _wire_new_run_from(actions, address, new_run, run_page, origin)
        _wire_new_run_on_votes(actions, address, new_run, of_votes, origin)
        wire_runs_list(actions, sidebar, address, busy)
        wire_keep_going(actions, address)
        wire_copies(actions, copies, page, address)
        home.click(picked, None, address, **_VIEWER)
        sidebar.runs.click(_address_of, None, address, **_VIEWER)
        opened = sidebar.new.click(lambda: ("", ""), None, [address, origin], **_VIEWER)
        new_run.check_on(opened.then)
        page.load(_query, None, address, **_VIEWER)
        frame = [device, account, new_run.keeps_copy]
        page.load(_frame_of(actions), None, frame, **_VIEWER)
        new_run.check_on(page.load)
        send_on_load(actions, page)
        wire_published_box(actions, new_run, origin)
        page.load(None, js="() => { qlora.fold(); qlora.started(); }", api_visibility="private")
        add_api(actions)
    page.queue(max_size=200)
    # gradio 6.31 looks for calls every millisecond, which takes 4 % of a core of a server that nobody uses.
    page._queue.sleep_when_free = _QUEUE_SECONDS
    page._queue.progress_update_sleep_when_free = _PROGRESS_SECONDS
    return page


def _header(actions: Actions) -> tuple[gr.HTML, gr.HTML, gr.HTML]:
    with gr.Row(elem_id="header"):
        home = build_pick_list(brand(), elem_id="brand", min_width=160)
        device = gr.HTML(elem_id="device", min_width=160)
        account = gr.HTML(elem_id="account", min_width=160)
        # Off Spaces Gradio mocks the login, which cannot publish anything.
        if actions.settings.is_space:
            gr.LoginButton(
                "Sign in",
                "Sign out",  # the name is beside it, with what cannot be seen in it as signs
                icon=None,
                size="md",
                elem_id="login",
                scale=0,
                min_width=120,
            )
    return device, account, home


def _run_tabs(actions: Actions, address: gr.Textbox) -> tuple[RunPage, gr.Tabs, gr.Button]:
    with gr.Tabs(selected="run", elem_id="tabs") as tabs:
        with gr.Tab("Run", id="run") as run_tab:
            run_page = build_run_page(actions, address, tabs)
        with gr.Tab("Compare", id="compare") as compare_tab:
            of_votes = build_compare_page(actions, address, compare_tab)
        with gr.Tab("Publish", id="publish") as publish_tab:
            build_publish_page(actions, address, publish_tab)
    for name, tab in zip(PAGES, (run_tab, compare_tab, publish_tab), strict=True):
        tab.select(None, js=f"() => qlora.setPage('{name}')", api_visibility="private")
    return run_page, tabs, of_votes


def _route(
    actions: Actions,
    address: gr.Textbox,
    pages: tuple[NewRun, AdapterPage],
    run_column: gr.Column,
    tabs: gr.Tabs,
    run_page: RunPage,
) -> None:
    """Open what the address names."""
    new_run, linked = pages

    @for_visitor(actions)
    def open_page(acting: Actions, query: str) -> dict[Any, Any]:
        at = parse_address(query)
        is_run = bool(at.run_id)
        is_link = at.link.is_comparison
        shown: dict[Any, Any] = {
            new_run.column: gr.Column(visible=not (is_run or is_link)),
            linked.column: gr.Column(visible=is_link),
            run_column: gr.Column(visible=is_run),
        }
        if is_link:
            return shown | linked.opened(at.link)
        if not is_run:
            return shown | (new_run.published.asked_for(at.link) if at.link.like else {})
        try:
            run = acting.run(at.run_id)
        except RunError as error:
            gr.Warning(text(error))
            return {address: ""}
        return shown | {tabs: gr.Tabs(selected=at.page)} | run_page.opened(acting, run)

    columns = [new_run.column, linked.column, run_column]
    outputs = [
        *(*columns, tabs, address, *run_page.outputs),
        *(*linked.outputs, *new_run.published.outputs),
    ]
    # First the URL, so that a tab selected by `open_page` writes its view into the new one.
    address.change(
        None, address, None, js="(query) => qlora.setAddress(query)", api_visibility="private"
    )
    opened = address.change(open_page, address, outputs, **_VIEWER)
    opened.then(None, js="() => qlora.pageIsOpen()", api_visibility="private")


def _wire_new_run_from(
    actions: Actions, address: gr.Textbox, new_run: NewRun, run_page: RunPage, origin: gr.State
) -> None:
    """Fill the form with the settings of a run, or also with its adapter, and open it."""

    def fills(*, goes_on: bool) -> Any:
        @for_visitor(actions)
        def fill(acting: Actions, query: str) -> dict[Component, Any]:
            run = run_at(acting, query)
            changed = {"name": next_name(run.name())} | ({"adapter": run.id} if goes_on else {})
            request = run.request().model_copy(update=changed)
            return new_run.filled(acting, request) | {address: "", origin: run.id}

        return fill

    outputs = [*new_run.fields.values(), new_run.draft, address, origin]
    for button, goes_on in ((run_page.again, False), (run_page.further, True)):
        filled = button.click(fills(goes_on=goes_on), address, outputs, **_VIEWER)
        new_run.check_on(filled.then)


def _wire_new_run_on_votes(
    actions: Actions, address: gr.Textbox, new_run: NewRun, button: gr.Button, origin: gr.State
) -> None:
    """Make a dataset of the votes on a run, fill the form with it and the run's other settings, and open it."""

    @for_visitor(actions)
    def fill_with_votes(acting: Actions, query: str) -> dict[Component, Any]:
        run = run_at(acting, query)
        dataset = preference_dataset(acting, run)
        request = run.request().model_copy(
            update=_OF_ANY_DATASET | {"dataset": dataset, "name": next_name(run.name())}
        )
        return new_run.filled(acting, request) | {address: "", origin: run.id}

    outputs = [*new_run.fields.values(), new_run.draft, address, origin]
    filled = button.click(fill_with_votes, address, outputs, **_VIEWER)
    new_run.check_on(filled.then)


def _address_of(event: gr.EventData) -> str:
    return f"run={picked(event)}&view=run"


def _query(request: gr.Request) -> str:
    return str(parse_address(str(request.query_params)))


def _frame_of(actions: Actions) -> Any:
    @for_visitor(actions)
    def frame(acting: Actions) -> tuple[str, str, dict[str, Any]]:
        acting.renew_sign_in()  # a page opens after each sign-in
        account = acting.account()
        chip = account_chip(account.name if account else None, acting.settings.is_space)
        may_keep = may_keep_copies(acting)
        return device_chip(acting.hardware()), chip, gr.update(visible=may_keep, value=may_keep)

    return frame
