"""The page of a link to an adapter on the Hub: it is filled in, and compares when a person presses the button."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.ask_panel import PRIVATE, interrupt, settle, streamed
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.links import MOST_PROMPT_CHARACTERS, Link, copy_link, link_of
from qlora_space.app.ui.render.compare import Progress, panes
from qlora_space.app.ui.render.html import error_notice, panel_title
from qlora_space.core.comparison import Question
from qlora_space.core.errors import RequestError

_HINT = (
    '<p class="hint">Base and adapter answer the same prompt side by side. Nothing is downloaded or computed before '
    "you press the button.</p>"
)


@dataclass(frozen=True)
class AdapterPage:
    column: gr.Column
    problems: gr.HTML
    adapter: gr.Textbox
    base: gr.Textbox
    revision: gr.Textbox
    prompt: gr.Textbox
    share: gr.HTML
    status: gr.HTML
    panes: gr.HTML
    progress: gr.State

    @property
    def asked(self) -> list[Any]:
        return [self.adapter, self.base, self.revision, self.prompt]

    @property
    def outputs(self) -> list[Any]:
        """What `opened` fills, beside the column."""
        return [*self.asked, self.problems, self.share, self.status, self.panes, self.progress]

    def opened(self, asked: Link) -> dict[Any, Any]:
        """Filled in with what can be right."""
        link, wrong = asked.checked()
        return {
            self.adapter: link.adapter,
            self.base: link.base,
            self.revision: link.revision,
            self.prompt: link.prompt,
            self.problems: "".join(map(error_notice, wrong)),
            self.share: _share(link),
            self.status: "",
            self.panes: panes(Progress()),
            self.progress: Progress(),
        }


def build_adapter_page(actions: Actions) -> AdapterPage:
    """Out of sight until a link names an adapter."""
    with gr.Column(visible=False, elem_id="adapter-page") as column:
        gr.HTML(panel_title("Compare an adapter on the Hub with its base"))
        problems = gr.HTML(elem_id="link-problems")
        with gr.Column(elem_classes="sheet", elem_id="link-panel"):
            gr.HTML(_HINT)
            with gr.Row(elem_classes="fields"):
                adapter = _box("Adapter", "owner/name", "link-adapter")
                base = _box("Base", "The one that the adapter names, if empty", "link-base")
                revision = _box("Revision", "Of the adapter; the newest, if empty", "link-revision")
            prompt = gr.Textbox(
                "",
                label="Prompt",
                lines=3,
                max_lines=12,
                max_length=MOST_PROMPT_CHARACTERS,
                elem_id="link-prompt",
            )
            with gr.Row(elem_id="link-buttons"):
                run = gr.Button(
                    "Run both models",
                    variant="primary",
                    elem_id="link-run",
                    scale=0,
                    min_width=160,
                    size="md",
                )
                halt = gr.Button(
                    "Stop", elem_id="link-halt", visible=False, scale=0, min_width=100, size="md"
                )
                share = gr.HTML(elem_id="link-share", min_width=120)
        status = gr.HTML(elem_id="link-status")
        shown = gr.HTML(panes(Progress()), elem_id="link-panes", elem_classes="panes-of-link")
        progress = gr.State(Progress())
    page = AdapterPage(
        column, problems, adapter, base, revision, prompt, share, status, shown, progress
    )
    _wire(actions, page, run, halt)
    return page


def _box(label: str, info: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        "", label=label, info=info, elem_id=elem_id, max_lines=1, max_length=200, min_width=200
    )


def _wire(actions: Actions, page: AdapterPage, run: gr.Button, halt: gr.Button) -> None:
    @for_visitor(actions)
    def answer(
        acting: Actions, adapter: str, base: str, revision: str, prompt: str
    ) -> Iterator[tuple[Any, ...]]:
        link = _asked(adapter, base, revision, prompt)
        question = Question(prompt=link.prompt)
        replies = acting.compare_adapter(
            link.adapter, [question], revision=link.revision, on_base=link.base
        )
        for now, _ in streamed(replies, question, ("Base", "Adapted")):
            yield panes(now), now.status, now, gr.update(visible=now.is_running)

    shown = [page.panes, page.status]
    running = run.click(
        answer, page.asked, [*shown, page.progress, halt], concurrency_limit=8, **PRIVATE
    )
    running.failure(settle, page.progress, [*shown, halt], **PRIVATE)
    stopped = [*shown, page.progress, halt]
    halt.click(interrupt, page.progress, stopped, cancels=[running], **PRIVATE)

    @for_visitor(actions)
    def relink(acting: Actions, adapter: str, base: str, revision: str) -> str:
        link, _ = link_of({"adapter": adapter, "base": base, "revision": revision}).checked()
        return _share(link)

    for box in (page.adapter, page.base, page.revision):
        box.blur(relink, page.asked[:3], page.share, **PRIVATE)


def _share(link: Link) -> str:
    """Its prompt is what stands in the box when it is copied."""
    without_prompt = Link(adapter=link.adapter, base=link.base, revision=link.revision)
    return copy_link(without_prompt, "#link-prompt textarea") if link.adapter else ""


def _asked(adapter: str, base: str, revision: str, prompt: str) -> Link:
    """Raises RequestError for the first value that is wrong, or is missing."""
    values = {"adapter": adapter, "base": base, "revision": revision, "prompt": prompt}
    link, wrong = link_of({name: value.strip() for name, value in values.items()}).checked()
    if wrong:
        raise wrong[0]
    if not link.adapter:
        raise RequestError("No adapter is named.", "Write owner/name.")
    if not link.prompt:
        raise RequestError("There is no prompt yet.", "Write one.")
    return link
