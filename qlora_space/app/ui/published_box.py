"""Below the form: the settings of a run that somebody published, by the name of its adapter on the Hub."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.links import Link
from qlora_space.app.ui.render.html import error_notice, notice
from qlora_space.core.published_run import PublishedRun

if TYPE_CHECKING:
    from qlora_space.app.ui.new_run import NewRun

_VIEWER: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 4}


@dataclass(frozen=True)
class PublishedBox:
    group: gr.Accordion
    repo: gr.Textbox
    fill: gr.Button
    outcome: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What `asked_for` fills."""
        return [self.group, self.repo, self.outcome]

    def asked_for(self, asked: Link) -> dict[Any, Any]:
        """Opened by a link, with its name; a person presses the button."""
        link, wrong = asked.checked()
        return {
            self.group: gr.Accordion(open=True),
            self.repo: link.like,
            self.outcome: "".join(map(error_notice, wrong)),
        }


def build_published_box() -> PublishedBox:
    """Folded: most people start from their own data."""
    with gr.Accordion("Start from a run on the Hub", open=False, elem_id="published-run") as group:
        repo = gr.Textbox(
            "",
            label="Published adapter",
            info="owner/name. Its settings fill the form, with its data and base at the same commits.",
            placeholder="owner/name",
            elem_id="published-repo",
            max_lines=1,
            max_length=200,
        )
        fill = gr.Button("Use its settings", size="sm", scale=0, min_width=160)
        outcome = gr.HTML(elem_id="published-outcome")
    return PublishedBox(group, repo, fill, outcome)


def wire_published_box(actions: Actions, new_run: "NewRun", origin: gr.State) -> None:
    box = new_run.published

    @for_visitor(actions)
    def fill(acting: Actions, repo: str) -> dict[Component, Any]:
        found = acting.published_run(repo)
        filled = new_run.filled(acting, found.request)
        return filled | {box.outcome: sentence(found), origin: ""}

    outputs = [*new_run.fields.values(), new_run.draft, box.outcome, origin]
    filled = gr.on([box.fill.click, box.repo.submit], fill, box.repo, outputs, **_VIEWER)
    new_run.check_on(filled.success)


def sentence(found: PublishedRun) -> str:
    """What fills the form now, and what could not be taken over."""
    done = notice("info", f"The form has the settings of {found.repo}.")
    return done + "".join(notice("warning", sentence) for sentence in found.left_out)
