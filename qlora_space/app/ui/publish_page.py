"""The page "Publish": a checklist that has to be complete before the button works, then the proof."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error, shows_errors
from qlora_space.app.ui.navigation import parse_address, run_at
from qlora_space.app.ui.render.html import error_notice, icon, notice, table, text
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.account import Account
from qlora_space.hub.publish import Published
from qlora_space.runs import RunFolder

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Check:
    """One line of the checklist."""

    is_ok: bool
    text: str


def checklist(account: Account | None, run: RunFolder, repo: str) -> list[Check]:
    """What must be true before anything is uploaded."""
    owner, _, name = repo.strip().partition("/")
    mine = () if account is None else (account.name, *account.orgs)
    signed_in = (
        f"Signed in as {account.name}"
        if account
        else "Sign in first: the button above, or hf auth login on your own machine"
    )
    can_write = account is not None and account.can_write
    yours = f"The repository is yours: {owner}"
    is_valid = bool(_NAME.fullmatch(name)) and "--" not in name and ".." not in name
    return [
        Check(account is not None, signed_in),
        Check(
            can_write,
            "Your token has write access" if can_write else "Your token needs write access",
        ),
        Check(
            owner in mine, yours if owner in mine else f"Not your repository: {owner or 'no owner'}"
        ),
        Check(is_valid, _name_words(name, is_valid)),
        Check(run.has_adapter, "Adapter ready" if run.has_adapter else "No adapter yet"),
    ]


def _name_words(name: str, is_valid: bool) -> str:
    if not name:
        return "Enter a repository name"
    return f"Repository name: {name}" if is_valid else f"Not a valid repository name: {name}"


def render_checklist(checks: list[Check]) -> str:
    items = "".join(
        f'<li class="{"ok" if c.is_ok else "missing"}">{icon("done" if c.is_ok else "missing")}'
        f'<span class="sr">{"Ready: " if c.is_ok else "Missing: "}</span>{text(c.text)}</li>'
        for c in checks
    )
    return f'<ul class="checklist">{items}</ul>'


def suggested_repo(account: Account | None, run_name: str) -> str:
    """'user/run-name-slug'."""
    slug = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")[:60] or "adapter"
    return f"{account.name if account else 'your-name'}/{slug}-qlora"


def proof(published: Published) -> str:
    """What is on the Hub now, and whether it is what was trained."""
    same = f"all {published.num_files} are the ones on this machine, by hash"
    rows = [
        ("Commit", published.commit[:12]),
        ("Files", same if published.verified.files else "not verified"),
        (
            "Repository",
            "Created for this adapter"
            if published.created
            else "Existing repository: 1 commit added",
        ),
    ]
    if published.verified.logits_max_diff is not None:
        rows.append(("Largest difference of the logits", f"{published.verified.logits_max_diff:g}"))
    link = text(published.url)
    return (
        f'<section class="result"><h3>{icon("done")}Published and verified'
        f'</h3><p><a href="{link}" target="_blank" rel="noopener">{text(published.repo)}</a></p>'
        f"{table(('What', 'Found on the Hub'), rows, 'Proof')}</section>"
    )


@dataclass(frozen=True)
class _Panel:
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
    cleared = [panel.repo, panel.for_16_bit, panel.with_base, panel.outcome]
    address.change(None, None, cleared, js="() => ['', false, false, '']", api_visibility="private")
    _wire_checks(actions, address, tab, panel)
    _wire_send(actions, address, panel)


def _build_panel() -> _Panel:
    with gr.Column(elem_classes="sheet", elem_id="publish-panel"):
        gr.HTML('<h3 class="panel-title">Publish the adapter to the Hugging Face Hub</h3>')
        repo = gr.Textbox("", label="Repository", info="owner/name", elem_id="repo", max_lines=1)
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
    return _Panel(repo, private, for_16_bit, with_base, checks, send, outcome)


def _wire_checks(actions: Actions, address: gr.Textbox, tab: gr.Tab, panel: _Panel) -> None:
    """The checklist, whenever the page is opened or the name of the repository changes."""

    def checked(run: RunFolder, name: str, account: Account | None) -> tuple[str, dict[str, Any]]:
        found = checklist(account, run, name)
        is_ready = all(check.is_ok for check in found)
        return render_checklist(found), gr.update(interactive=is_ready, value="Publish")

    @shows_errors
    def prepare(query: str, written: str, token: gr.OAuthToken | None) -> tuple[Any, ...]:
        run, account = run_at(actions, query), actions.account(token and token.token)
        plan = run.plan()
        name = written or suggested_repo(account, plan.name)
        packed = gr.update(visible=plan.is_low_bit, value=plan.base_is_own)
        return name, gr.update(visible=plan.is_low_bit), packed, *checked(run, name, account)

    @shows_errors
    def check(query: str, name: str, token: gr.OAuthToken | None) -> Any:
        if not parse_address(query).run_id:
            return gr.skip(), gr.skip()
        return checked(run_at(actions, query), name, actions.account(token and token.token))

    inputs, outputs = [address, panel.repo], [panel.checks, panel.send]
    prepared = [panel.repo, panel.for_16_bit, panel.with_base, *outputs]
    tab.select(prepare, inputs, prepared, concurrency_limit=None, **_PRIVATE)
    # Not `input`: it is lost when it comes right after an update from the server (gradio 6.31).
    panel.repo.change(check, inputs, outputs, trigger_mode="always_last", **_PRIVATE)


def _wire_send(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    def push(
        query: str,
        name: str,
        is_private: bool,
        for_16_bit: bool,
        with_base: bool,
        token: gr.OAuthToken | None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        yield notice("info", "Sending the adapter to the Hub …"), gr.update(interactive=False)
        try:
            done = actions.publish(
                run_at(actions, query),
                name.strip(),
                is_private,
                token and token.token,
                for_16_bit=for_16_bit,
                with_base=with_base and not for_16_bit,
            )
            yield proof(done), gr.update(interactive=True, value="Publish again")
        except Exception as error:
            yield (
                error_notice(as_qlora_space_error(error)),
                gr.update(interactive=True, value="Retry"),
            )

    inputs = [address, panel.repo, panel.private, panel.for_16_bit, panel.with_base]
    panel.send.click(push, inputs, [panel.outcome, panel.send], concurrency_limit=4, **_PRIVATE)
