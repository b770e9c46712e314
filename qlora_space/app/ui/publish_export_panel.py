"""Below the exports of a run: one of them goes to a repository of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.exporting import exports
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.navigation import run_at
from qlora_space.app.ui.render.html import error_notice, notice, text
from qlora_space.app.ui.render.publish import EXPORT_NAMES, made_line
from qlora_space.core.errors import Conflict, RequestError
from qlora_space.core.export import ModelFormat
from qlora_space.core.parsing import parse_values
from qlora_space.hub import suggested_repo
from qlora_space.hub.licenses import terms_of
from qlora_space.runs import PushRequest, RunFolder

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class PublishExport:
    group: gr.Accordion
    format: gr.Dropdown
    repo: gr.Textbox
    private: gr.Checkbox
    terms: gr.HTML
    replaces: gr.Checkbox
    send: gr.Button
    outcome: gr.HTML

    @property
    def outputs(self) -> list[Component]:
        return [self.group, self.outcome]  # type: ignore[list-item]

    def updates(self, run: RunFolder) -> dict[Any, Any]:
        """There is one as soon as a model was exported."""
        return {self.group: gr.update(visible=bool(_formats(run))), self.outcome: published(run)}


def build_publish_export() -> PublishExport:
    """Folded: most people publish the adapter."""
    with gr.Accordion(
        "Publish an export", open=False, visible=False, elem_id="publish-export"
    ) as group:
        with gr.Row(elem_classes="fields"):
            kind = gr.Dropdown([], label="Export", elem_id="publish-export-format", min_width=220)
            repo = gr.Textbox(
                "",
                label="Repository",
                placeholder="your-name/my-model",
                elem_id="publish-export-repo",
                max_lines=1,
                max_length=200,
                min_width=240,
            )
        private = gr.Checkbox(
            label="Private: only you can see it", value=True, elem_id="publish-export-private"
        )
        terms = gr.HTML(elem_id="publish-export-terms")
        replaces = gr.Checkbox(
            label="Replace what was changed on the Hub",
            value=False,
            visible=False,
            elem_id="publish-export-replace",
        )
        send = gr.Button(
            "Publish this export", scale=0, min_width=200, elem_id="publish-export-send"
        )
        outcome = gr.HTML(elem_id="export-published")
    return PublishExport(group, kind, repo, private, terms, replaces, send, outcome)


def wire_publish_export(actions: Actions, panel: PublishExport, address: gr.Textbox) -> None:
    @for_visitor(actions)
    def open_panel(acting: Actions, query: str) -> dict[Any, Any]:
        run = run_at(acting, query)
        formats = _formats(run)
        newest = formats[-1] if formats else None
        return {
            panel.format: gr.update(choices=[(EXPORT_NAMES[f], f) for f in formats], value=newest),
            panel.repo: _suggested(acting, run, newest),
            panel.terms: _terms(run),
        }

    @for_visitor(actions)
    def choose(acting: Actions, query: str, kind: str | None) -> str:
        return _suggested(acting, run_at(acting, query), kind)

    @for_visitor(actions)
    def send(
        acting: Actions,
        query: str,
        kind: str | None,
        repo: str,
        is_private: bool,
        replaces: bool,
    ) -> Iterator[dict[Any, Any]]:
        run = run_at(acting, query)
        yield {
            panel.outcome: notice("info", "Sending the export to the Hub …"),
            panel.send: gr.update(interactive=False),
        }
        try:
            push = _request(run, kind, repo, is_private=is_private, replaces=replaces)
            acting.publish(run, push)
            shown, box = published(run), gr.update(value=False, visible=False)
        except Exception as error:
            shown = error_notice(as_qlora_space_error(error)) + published(run)
            box = gr.update(visible=replaces or isinstance(error, Conflict))
        yield {
            panel.outcome: shown,
            panel.replaces: box,
            panel.send: gr.update(interactive=True),
        }

    opened = [panel.format, panel.repo, panel.terms]
    panel.group.expand(open_panel, address, opened, concurrency_limit=None, **_PRIVATE)
    panel.format.input(choose, [address, panel.format], panel.repo, **_PRIVATE)
    panel.repo.change(  # it was said of the other repository
        None, None, panel.replaces, js="() => false", api_visibility="private"
    )
    panel.send.click(
        send,
        [address, panel.format, panel.repo, panel.private, panel.replaces],
        [panel.outcome, panel.replaces, panel.send],
        concurrency_limit=2,
        trigger_mode="once",
        **_PRIVATE,
    )


def _formats(run: RunFolder) -> list[ModelFormat]:
    """That the run has a model in, the newest last."""
    made = [each.options.format for each in exports(run)]
    return [known for name in made for known in EXPORT_NAMES if known == name]


def _suggested(acting: Actions, run: RunFolder, kind: str | None) -> str:
    known: ModelFormat | None = next((name for name in EXPORT_NAMES if name == kind), None)
    return suggested_repo(acting.account(), run, known) if known else ""


def _request(
    run: RunFolder, kind: str | None, repo: str, *, is_private: bool, replaces: bool
) -> PushRequest:
    """Raises RequestError."""
    if kind not in _formats(run):
        raise RequestError("No export is chosen.", "Choose one that this run has.")
    if not repo.strip():
        raise RequestError("The repository has no name.", "Write one, as in your-name/my-model.")
    values = {"repo": repo.strip(), "what": kind, "private": is_private, "replace": replaces}
    return parse_values(PushRequest, values)


def _terms(run: RunFolder) -> str:
    """The weights of the base are in it, so its licence counts."""
    base = run.plan().base
    return (
        f'<p class="hint">{text(terms_of(base.license).text)}</p>' if base.source == "hub" else ""
    )


def published(run: RunFolder) -> str:
    """Where each export was published last; '' if nowhere."""
    done = {each.what: each for each in run.all_publications() if each.what in EXPORT_NAMES}
    return "".join(made_line(each) for each in done.values())
