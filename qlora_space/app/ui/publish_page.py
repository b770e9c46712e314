"""The page "Publish": a checklist that has to be complete before the button works, then the proof."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.navigation import parse_address, run_at
from qlora_space.app.ui.proof_panel import add_proof
from qlora_space.app.ui.render.html import error_notice, icon, notice, panel_title, table, text
from qlora_space.core.errors import HubError
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import age
from qlora_space.hub import Target, is_repo_name
from qlora_space.hub.account import Account
from qlora_space.hub.licenses import terms_of
from qlora_space.runs import Publication, RunFolder

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_VIEWER: dict[str, Any] = _PRIVATE | {"concurrency_limit": None}
_OWN_LICENSE = "apache-2.0"  # of the embedded base
_STATES = {"ok": "Ready", "missing": "Missing", "asking": "Not known yet", "note": "To be read"}
_PICTURES = {"ok": "done", "missing": "missing", "asking": "working", "note": "info"}


@dataclass(frozen=True)
class Check:
    """One line of the checklist. A note leaves the button as it is."""

    state: Literal["ok", "missing", "asking", "note"]
    text: str


@dataclass(frozen=True)
class Destination:
    """Where an adapter is to go, and what is known of it."""

    repo: str
    account: Account | None = None
    target: Target | None = None  # None: not asked
    error: HubError | None = None

    @property
    def is_mine(self) -> bool:
        return self.account is not None and self._owner in (self.account.name, *self.account.orgs)

    @property
    def is_worth_asking(self) -> bool:
        """Whether everything that is known without the Hub's answer about the repository is right."""
        return self.is_mine and is_repo_name(self.repo)

    @property
    def _owner(self) -> str:
        return self.repo.partition("/")[0]


def checklist(to: Destination, run: RunFolder, is_space: bool) -> list[Check]:
    """What must be true before anything is uploaded. What cannot be known yet is not claimed."""
    of_run = [_license_check(run), _adapter_check(run)]
    if to.error is not None:
        return [Check("missing", "Can't reach the Hub"), *of_run]
    if to.account is None:
        return [Check("missing", _how_to_sign_in(is_space)), *of_run]
    write = (
        "Your token has write access" if to.account.can_write else "Your token needs write access"
    )
    return [
        Check("ok", f"Signed in as {to.account.name}"),
        Check("ok" if to.account.can_write else "missing", write),
        _repo_check(to, to.account),
        *of_run,
    ]


def _license_check(run: RunFolder) -> Check:
    base = run.plan().base
    terms = terms_of(base.license or (_OWN_LICENSE if base.source == "demo" else ""))
    return Check("ok" if terms.kind == "allows" else "note", terms.text)


def _how_to_sign_in(is_space: bool) -> str:
    if is_space:
        return "Not signed in: use “Sign in” at the top of the page"
    return "Not signed in: run “hf auth login” in a terminal on this machine, then reload this page"


def _repo_check(to: Destination, account: Account) -> Check:
    name = to.repo.partition("/")[2]
    if not name:
        return Check("missing", "Enter a repository name")
    if not to.is_mine:
        return Check("missing", f"Choose a name under: {', '.join((account.name, *account.orgs))}")
    if not is_repo_name(to.repo):
        return Check("missing", f"Not a valid repository name: {name}")
    return _target_check(to.repo, to.target)


def _target_check(repo: str, target: Target | None) -> Check:
    if target is None:
        return Check("asking", f"Asking the Hub about {repo} …")
    who_reads = "private" if target.is_private else "public: everyone can read it"
    match target.state:
        case "free":
            return Check("ok", f"New repository: {repo}")
        case "ours":
            return Check("ok", f"Existing repository ({who_reads}): 1 commit will be added")
        case "foreign":
            return Check("missing", f"Name taken: {repo} holds files that are not from this run")
    return Check("missing", f"Your token has no write access to {repo}")


def _adapter_check(run: RunFolder) -> Check:
    return Check("ok", "Adapter ready") if run.has_adapter else Check("missing", "No adapter yet")


def is_complete(checks: list[Check]) -> bool:
    return all(check.state in ("ok", "note") for check in checks)


def render_checklist(checks: list[Check]) -> str:
    items = "".join(
        f'<li class="{c.state}">{icon(_PICTURES[c.state])}'
        f'<span class="sr">{_STATES[c.state]}: </span>{text(c.text)}</li>'
        for c in checks
    )
    return f'<ul class="checklist">{items}</ul>'


def suggested_repo(account: Account | None, run: RunFolder) -> str:
    """Where it was published last, else 'user/run-name-slug'; '' while nobody is signed in."""
    if done := run.publications():
        return done[-1].repo
    slug = re.sub(r"[^a-z0-9]+", "-", run.name().lower()).strip("-")[:60] or "adapter"
    return f"{account.name}/{slug}-qlora" if account else ""


def proof(done: list[Publication], target: Target | None) -> str:
    """What was published last, whether it is there now, and what was published before."""
    if not done:
        return ""
    *earlier, last = done
    rows = [
        ("Commit", last.commit[:12]),
        ("Files", f"all {last.num_files} are the ones on this machine, by hash"),
        ("Repository", _how_published(last)),
        ("On the Hub now", _whether_there(target)),
    ]
    others = [(each.repo, age(each.time), each.commit[:12]) for each in reversed(earlier)]
    before = table(("Published before", "When", "Commit"), others, "Earlier publications")
    return (
        f'<section class="result"><h3>{icon("done")}Published and verified {age(last.time)}</h3>'
        f'<p><a href="{text(last.url)}" target="_blank" rel="noopener">{text(last.repo)}</a></p>'
        f"{table(('What', 'Found on the Hub'), rows, 'Proof')}{before if others else ''}</section>"
    )


def _how_published(last: Publication) -> str:
    if last.created:
        return "Created for this adapter"
    return "Existing repository: 1 commit added"


def _whether_there(target: Target | None) -> str:
    if target is None:
        return "not checked: can't reach the Hub"
    if target.state == "free":
        return "no: it was deleted, renamed, or this account cannot see it"
    if target.state == "foreign":
        return "no: the files are not from this run any more"
    return f"yes, {'private' if target.is_private else 'public'}"


@dataclass(frozen=True)
class _Panel:
    title: gr.HTML
    repo: gr.Textbox
    private: gr.Checkbox
    for_16_bit: gr.Checkbox
    with_base: gr.Checkbox
    checks: gr.HTML
    send: gr.Button
    outcome: gr.HTML


def build_publish_page(actions: Actions, address: gr.Textbox, tab: gr.Tab) -> None:
    """Lay out and wire the page inside the current tab."""
    panel = _build_panel()
    # In the browser, at once: before the tab of the next run is prepared.
    cleared = [panel.repo, panel.for_16_bit, panel.with_base, panel.outcome, panel.title]
    address.change(
        None, None, cleared, js="() => ['', false, false, '', '']", api_visibility="private"
    )
    _wire_checks(actions, address, tab, panel)
    _wire_send(actions, address, panel)
    add_proof(actions, address, panel.outcome)


def _build_panel() -> _Panel:
    with gr.Column(elem_classes="sheet", elem_id="publish-panel"):
        title = gr.HTML(elem_id="publish-title")
        repo = gr.Textbox(
            "",
            label="Repository",
            info="owner/name",
            placeholder="your-name/my-adapter",
            elem_id="repo",
            max_lines=1,
        )
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
        checks = gr.HTML(elem_id="checklist")
        send = gr.Button(
            "Publish",
            variant="primary",
            interactive=False,
            elem_id="publish",
            scale=0,
            min_width=160,
        )
    outcome = gr.HTML(elem_id="published")
    return _Panel(title, repo, private, for_16_bit, with_base, checks, send, outcome)


def _wire_checks(actions: Actions, address: gr.Textbox, tab: gr.Tab, panel: _Panel) -> None:
    """The checklist, whenever the page is opened or the name of the repository changes."""

    @for_visitor(actions)
    def prepare(acting: Actions, query: str, written: str) -> dict[Any, Any]:
        run, account = run_at(acting, query), _destination(acting, "").account
        plan = run.plan()
        return {
            panel.title: panel_title(
                f"Publish the adapter of “{run.name()}” to the Hugging Face Hub"
            ),
            panel.repo: written or suggested_repo(account, run),
            panel.for_16_bit: gr.update(visible=plan.is_low_bit),
            panel.with_base: gr.update(visible=plan.is_low_bit, value=plan.base_is_own),
        }

    @for_visitor(actions)
    def check(acting: Actions, query: str, name: str) -> Iterator[dict[Any, Any]]:
        if not parse_address(query).run_id:
            yield {panel.checks: gr.skip()}
            return
        run, to = run_at(acting, query), _destination(acting, name)
        yield _shown(acting, run, to, panel)
        if to.is_worth_asking:
            to = _asked(acting, run, to)
            yield _shown(acting, run, to, panel)

    @for_visitor(actions)
    def prove(acting: Actions, query: str) -> str:
        run = run_at(acting, query)
        done = run.publications()
        return proof(done, _target_of_last(acting, run)) if done else ""

    inputs, outputs = [address, panel.repo], [panel.checks, panel.send, panel.private]
    prepared = [panel.title, panel.repo, panel.for_16_bit, panel.with_base]
    opened = tab.select(prepare, inputs, prepared, **_VIEWER)
    opened.then(check, inputs, outputs, **_VIEWER).then(prove, address, panel.outcome, **_VIEWER)
    # Not `input`: it is lost when it comes right after an update from the server (gradio 6.31).
    panel.repo.change(check, inputs, outputs, trigger_mode="always_last", **_PRIVATE)


def _shown(actions: Actions, run: RunFolder, to: Destination, panel: _Panel) -> dict[Any, Any]:
    checks = checklist(to, run, actions.settings.is_space)
    is_ready = is_complete(checks)
    is_new = to.target is None or to.target.state == "free"
    word = "Publish again" if any(p.repo == to.repo for p in run.publications()) else "Publish"
    return {
        panel.checks: render_checklist(checks),
        panel.send: gr.update(interactive=is_ready, value=word),
        panel.private: gr.update(visible=is_new),  # a repository that exists stays as it is
    }


def _destination(actions: Actions, name: str) -> Destination:
    try:
        return Destination(name.strip(), actions.read_account())
    except HubError as error:
        return Destination(name.strip(), error=error)


def _asked(actions: Actions, run: RunFolder, to: Destination) -> Destination:
    """With the Hub's answer about the repository."""
    try:
        target = actions.read_target(run, to.repo)
    except HubError as error:
        return Destination(to.repo, to.account, error=error)
    return Destination(to.repo, to.account, target)


def _target_of_last(actions: Actions, run: RunFolder) -> Target | None:
    try:
        return actions.read_target(run, run.publications()[-1].repo)
    except HubError:
        return None


def _wire_send(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    @for_visitor(actions)
    def push(
        acting: Actions,
        query: str,
        name: str,
        is_private: bool,
        for_16_bit: bool,
        with_base: bool,
    ) -> Iterator[dict[Any, Any]]:
        yield {
            panel.outcome: notice("info", "Sending the adapter to the Hub …"),
            panel.send: gr.update(interactive=False),
        }
        try:
            run, repo = run_at(acting, query), name.strip()
            target = acting.read_target(run, repo)
            is_new = target.state == "free"
            acting.publish(
                run,
                repo,
                is_private if is_new else target.is_private,
                for_16_bit=for_16_bit,
                with_base=with_base and not for_16_bit,
            )
            to = _asked(acting, run, _destination(acting, name))
            yield _shown(acting, run, to, panel) | {
                panel.outcome: proof(run.publications(), to.target)
            }
        except Exception as error:
            yield {
                panel.outcome: error_notice(as_qlora_space_error(error)),
                panel.send: gr.update(interactive=True, value="Publish again"),
            }

    inputs = [address, panel.repo, panel.private, panel.for_16_bit, panel.with_base]
    outputs = [panel.outcome, panel.checks, panel.send, panel.private]
    panel.send.click(push, inputs, outputs, concurrency_limit=4, **_PRIVATE)
