"""One order of turns as a template lays it out, and a conversation on its way through it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.data.messages import Message, Messages, Style, as_template_input
from qlora_space.data.rows import RowProblem
from qlora_space.data.template.align import Rendered
from qlora_space.data.template.layout import Skeleton, TemplateRefused
from qlora_space.data.template.process import Job, Page
from qlora_space.data.template.trace import Recording

_ROWS_BETWEEN_CHECKS = 64
_ROLE_WORDS = re.compile(r"role|alternat|must (start|begin|follow)|first|after", re.IGNORECASE)

Tools = list[dict[str, Any]] | None


@dataclass
class Layout:
    """A skeleton, and how messages have to be handed to the template for it.

    `recording`: for which contents the template surely writes what the skeleton says.
    """

    skeleton: Skeleton
    folds_system: bool
    style: Style
    tails: tuple[str | None, ...]
    recording: Recording | None
    rows_foreseen: int = 0

    def foresee(self, turns: Messages) -> Rendered | None:
        """What the template would write, if that is certain without asking it."""
        if not (self.recording and self.recording.holds_for([turn.content for turn in turns])):
            return None
        self.rows_foreseen += 1
        return self.rendered(*self.skeleton.fill(turns))

    @property
    def is_due(self) -> bool:
        """Whether the template is asked all the same: for the first row, and for some later ones."""
        return self.rows_foreseen % _ROWS_BETWEEN_CHECKS == 1

    def rendered(self, text: str, spans: list[tuple[int, int]]) -> Rendered:
        return Rendered(self.skeleton.finish(text, spans), tuple(spans), self.tails)


@dataclass(frozen=True)
class Waiting:
    """A conversation on its way to the template, and what the template has to write if that is certain."""

    turns: Messages
    tools: Tools
    layout: Layout
    foreseen: Rendered | None = None

    @property
    def job(self) -> Job:
        return job_of(self.turns, self.tools, self.layout.style)


class TemplateSurprise(Exception):
    """The template wrote something else than what was certain: of this template nothing is."""


def job_of(
    messages: Sequence[Message],
    tools: Tools,
    style: Style,
    add_generation_prompt: bool = False,
    with_marks: bool = False,
    with_recording: bool = False,
) -> Job:
    dicts = tuple(as_template_input(message, style) for message in messages)
    return Job(dicts, tools, add_generation_prompt, with_marks, with_recording)


def placed(waiting: Waiting, page: Page | TemplateRefused) -> Rendered | RowProblem:
    """The text with the spans of its answers, if they are certain. Raises TemplateSurprise."""
    placed = _placed_by(waiting.layout, waiting.turns, page)
    if waiting.foreseen is not None and placed != waiting.foreseen:
        raise TemplateSurprise
    return placed


def _placed_by(
    layout: Layout, turns: Messages, page: Page | TemplateRefused
) -> Rendered | RowProblem:
    if isinstance(page, TemplateRefused):
        return refusal_of(page, needs_tools=False)
    spans = layout.skeleton.spans(page.text, turns)
    if spans is None:
        return RowProblem("unproved_mask", "The template rewrites an answer of this row.")
    return layout.rendered(page.text, spans)


def tails_of(skeleton: Skeleton, added: re.Pattern[str]) -> tuple[str | None, ...]:
    tails: list[str | None] = []
    for literal, answer in zip(skeleton.literals, skeleton.answers, strict=False):
        if answer:
            prompt = literal[: len(literal) - len(answer.lead)]
            ends = [match.end() for match in added.finditer(prompt)]
            tails.append(prompt[ends[-1] :] if ends else None)
    return tuple(tails)


def refusal_of(refusal: TemplateRefused, needs_tools: bool) -> RowProblem:
    text = str(refusal).strip().rstrip(".")[:200]
    if needs_tools:
        return RowProblem("no_tools", f"The chat template refuses calls of tools: {text}.")
    code = "role_order" if _ROLE_WORDS.search(text) else "template_refused"
    return RowProblem(code, f"The chat template refuses this order of turns: {text}.")
