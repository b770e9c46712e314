"""The page "Publish": a checklist that has to be complete before the button works, then the proof."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.events import Dependency

from qlora_space.app.actions import Actions
from qlora_space.app.following import follow_when_here
from qlora_space.app.publishing import forget_unsent, send_when_here
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.checklist import (
    Destination,
    begun,
    checklist,
    is_complete,
)
from qlora_space.app.ui.compare_settings import NEWEST, step_choices
from qlora_space.app.ui.demo_panel import add_demo
from qlora_space.app.ui.navigation import parse_address, run_at
from qlora_space.app.ui.proof_panel import add_proof
from qlora_space.app.ui.render.html import error_notice, notice, panel_title
from qlora_space.app.ui.render.publish import proof, render_checklist, unsent
from qlora_space.core.errors import HubError, RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import Target, suggested_repo
from qlora_space.runs import PushRequest, RunFolder
from qlora_space.runs.proofs import proof_of
from qlora_space.runs.pushing import is_being_pushed

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_VIEWER: dict[str, Any] = _PRIVATE | {"concurrency_limit": None}


@dataclass(frozen=True)
class _Panel:
    title: gr.HTML
    step: gr.Dropdown
    repo: gr.Textbox
    private: gr.Checkbox
    for_16_bit: gr.Checkbox
    with_base: gr.Checkbox
    replace: gr.Checkbox
    checks: gr.HTML
    send: gr.Button
    waiting: gr.HTML
    forget: gr.Button
    outcome: gr.HTML

    @property
    def asked(self) -> list[Any]:
        """What a person chose."""
        return [
            self.repo, self.private, self.for_16_bit, self.with_base, self.step, self.replace,
        ]  # fmt: skip

    @property
    def notices(self) -> list[Any]:
        """What is still to be sent, and what was published."""
        return [self.waiting, self.forget, self.outcome]

    @property
    def shown(self) -> list[Any]:
        return [self.checks, self.send, self.private, self.replace]


def build_publish_page(actions: Actions, address: gr.Textbox, tab: gr.Tab) -> None:
    """Lay out and wire the page inside the current tab."""
    panel = _build_panel()
    # In the browser, at once: before the tab of the next run is prepared.
    cleared = [
        panel.repo, panel.for_16_bit, panel.with_base, panel.replace, panel.outcome, panel.waiting,
        panel.title,
    ]  # fmt: skip
    address.change(
        None,
        None,
        cleared,
        js="() => ['', false, false, false, '', '', '']",
        api_visibility="private",
    )
    _wire_checks(actions, address, tab, panel)
    sent = _wire_send(actions, address, panel)
    _wire_forget(actions, address, panel)
    add_proof(actions, address, panel.outcome, sent)
    add_demo(actions, address, panel.outcome)


def _build_panel() -> _Panel:
    with gr.Column(elem_classes="sheet", elem_id="publish-panel"):
        title = gr.HTML(elem_id="publish-title")
        step = gr.Dropdown(
            [("The run's adapter", NEWEST)],
            value=NEWEST,
            label="Adapter",
            visible=False,
            elem_id="publish-step",
        )
        repo = gr.Textbox(
            "",
            label="Repository",
            info="owner/name",
            placeholder="your-name/my-adapter",
            elem_id="repo",
            max_lines=1,
        )
        private, for_16_bit, with_base, replaced = _check_boxes()
        checks = gr.HTML(elem_id="checklist")
        send = gr.Button(
            "Publish",
            variant="primary",
            interactive=False,
            elem_id="publish",
            scale=0,
            min_width=160,
        )
    waiting = gr.HTML(elem_id="unsent")
    forget = gr.Button(
        "Do not send it", visible=False, size="sm", scale=0, min_width=160, elem_id="forget-push"
    )
    outcome = gr.HTML(elem_id="published")
    return _Panel(
        title, step, repo, private, for_16_bit, with_base, replaced, checks, send, waiting, forget,
        outcome,
    )  # fmt: skip


def _check_boxes() -> tuple[gr.Checkbox, gr.Checkbox, gr.Checkbox, gr.Checkbox]:
    private = gr.Checkbox(
        label="Private: only you can see it",
        value=TrainingRequest.model_fields["hub_private_repo"].default,
        elem_id="private",
    )
    for_16_bit = gr.Checkbox(
        label="For the 16-bit base: take the repair of the low-bit base out",
        value=False,
        visible=False,
        elem_id="for-16-bit",
    )
    with_base = gr.Checkbox(
        label="Send the packed base along, if its licence allows it",
        value=False,
        visible=False,
        elem_id="with-base",
    )
    replaced = gr.Checkbox(
        label="Replace what was changed on the Hub",
        value=False,
        visible=False,
        elem_id="replace",
    )
    return private, for_16_bit, with_base, replaced


def _wire_checks(actions: Actions, address: gr.Textbox, tab: gr.Tab, panel: _Panel) -> None:
    """The checklist, whenever the page is opened or the name of the repository changes."""

    @for_visitor(actions)
    def prepare(acting: Actions, query: str, written: str) -> dict[Any, Any]:
        run, account = run_at(acting, query), _destination(acting, "").account
        plan, steps = run.plan(), step_choices(acting, run)
        return {
            panel.title: panel_title(
                f"Publish the adapter of “{run.name()}” to the Hugging Face Hub"
            ),
            panel.step: gr.update(
                choices=steps, value=NEWEST, visible=run.has_adapter and len(steps) > 1
            ),
            panel.repo: written or suggested_repo(account, run),
            panel.for_16_bit: gr.update(visible=plan.is_low_bit),
            panel.with_base: gr.update(visible=plan.is_low_bit, value=plan.base_is_own),
        }

    @for_visitor(actions)
    def check(acting: Actions, query: str, name: str, replaces: bool) -> Iterator[dict[Any, Any]]:
        if not parse_address(query).run_id:
            yield {panel.checks: gr.skip()}
            return
        run, to = run_at(acting, query), _destination(acting, name, replaces)
        yield _shown(acting, run, to, panel)
        if to.is_worth_asking:
            yield _shown(acting, run, _asked(acting, run, to), panel)

    @for_visitor(actions)
    def prove(acting: Actions, query: str) -> dict[Any, Any]:
        return _outcome(acting, run_at(acting, query), panel)

    inputs = [address, panel.repo, panel.replace]
    prepared = [panel.title, panel.step, panel.repo, panel.for_16_bit, panel.with_base]
    opened = tab.select(prepare, [address, panel.repo], prepared, **_VIEWER)
    checked = opened.then(check, inputs, panel.shown, **_VIEWER)
    checked.then(prove, address, panel.notices, **_VIEWER)
    # Not `input`: it is lost when it comes right after an update from the server (gradio 6.31).
    for component in (panel.repo, panel.replace):
        component.change(check, inputs, panel.shown, trigger_mode="always_last", **_PRIVATE)


def _shown(actions: Actions, run: RunFolder, to: Destination, panel: _Panel) -> dict[Any, Any]:
    to = begun(to, run)
    checks = checklist(to, run, actions.settings.is_space)
    is_ready = is_complete(checks)
    word = "Publish again" if any(p.repo == to.repo for p in run.publications()) else "Publish"
    return {
        panel.checks: render_checklist(checks),
        panel.send: gr.update(interactive=is_ready, value=word),
        panel.private: gr.update(visible=to.is_new),  # a repository that exists stays as it is
        panel.replace: gr.update(visible=bool(to.target and to.target.changed)),
    }


def _outcome(actions: Actions, run: RunFolder, panel: _Panel) -> dict[Any, Any]:
    """What is still to be sent, and what was published."""
    done, push = run.publications(), run.unsent_push()
    is_being_sent = is_being_pushed(run)
    target = _target_of_last(actions, run) if done else None
    found = proof_of(run, done[-1].commit) if done else None
    return {
        panel.waiting: unsent(push, time.time(), is_being_sent),
        panel.outcome: proof(done, target, found),
        panel.forget: gr.update(visible=push is not None and not is_being_sent),
    }


def _destination(actions: Actions, name: str, replaces: bool = False) -> Destination:
    try:
        return Destination(name.strip(), actions.read_account(), replaces=replaces)
    except HubError as error:
        return Destination(name.strip(), error=error)


def _asked(actions: Actions, run: RunFolder, to: Destination) -> Destination:
    """With the Hub's answer about the repository."""
    try:
        return replace(to, target=actions.read_target(run, to.repo))
    except HubError as error:
        return replace(to, error=error)


def _target_of_last(actions: Actions, run: RunFolder) -> Target | None:
    try:
        return actions.read_target(run, run.publications()[-1].repo)
    except HubError:
        return None


def _wire_send(actions: Actions, address: gr.Textbox, panel: _Panel) -> Dependency:
    @for_visitor(actions)
    def push(
        acting: Actions, query: str, name: str, is_private: bool, *chosen: Any
    ) -> Iterator[dict[Any, Any]]:
        for_16_bit, with_base, step, replaces = chosen
        yield {
            panel.outcome: notice("info", "Sending the adapter to the Hub …"),
            panel.waiting: "",
            panel.send: gr.update(interactive=False),
            panel.forget: gr.update(visible=False),
        }
        try:
            run = run_at(acting, query)
            to = begun(_asked(acting, run, _destination(acting, name, replaces)), run)
            request = PushRequest(
                repo=to.repo,
                private=is_private if to.is_new or to.target is None else to.target.is_private,
                for_16_bit=for_16_bit,
                with_base=with_base and not for_16_bit,
                step=int(step) if step and step != NEWEST else None,
                replace=replaces,
            )
            acting.publish(run, request)
            to = _asked(acting, run, _destination(acting, name))
            yield _shown(acting, run, to, panel) | _outcome(acting, run, panel)
        except Exception as error:
            shown = error_notice(as_qlora_space_error(error))
            yield {
                panel.outcome: shown + _again(acting, query),
                panel.send: gr.update(interactive=True, value="Publish again"),
            }

    outputs = [*panel.notices, *panel.shown]
    asked = [address, *panel.asked]
    return panel.send.click(push, asked, outputs, concurrency_limit=4, **_PRIVATE)


def _again(acting: Actions, query: str) -> str:
    """That it is sent again without anybody's help, if it is."""
    try:
        push = run_at(acting, query).unsent_push()
    except RunError:  # deleted in another tab
        return ""
    if push is None or push.is_refused:
        return ""
    when = "when you open this app again" if acting.settings.is_space else "also after a restart"
    return notice("info", f"It is sent again by itself, {when}.")


def _wire_forget(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    """A push that is still to be made is forgotten if a person says so."""

    @for_visitor(actions)
    def forget(acting: Actions, query: str) -> dict[Any, Any]:
        run = run_at(acting, query)
        forget_unsent(acting, run)
        return _outcome(acting, run, panel)

    panel.forget.click(forget, address, panel.notices, **_VIEWER)


def send_on_load(actions: Actions, page: gr.Blocks) -> None:
    """On a Space, what is still to be sent, and jobs that nobody follows, wait for their owner."""

    @for_visitor(actions)
    def send(acting: Actions) -> None:
        send_when_here(acting)
        follow_when_here(acting)

    if actions.settings.is_space:
        page.load(send, None, None, **_VIEWER)
