"""Turns examples into tokens and the mask of those that are trained, and proves the mask row by row.

Trained are the answers with the token that ends each, and what the template leaves to the model in
front of an answer (an empty think block, a space): that is, what generation has to produce after the
generation prompt. Calls of tools and reasoning are trained as the template writes them. Nothing else.
"""

import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from qlora_space.core.errors import ModelError
from qlora_space.core.options import Format
from qlora_space.data.messages import Example, Message, Messages, Style, split_tools
from qlora_space.data.rows import RowProblem, is_utf8
from qlora_space.data.template.align import Aligner, Rendered
from qlora_space.data.template.fallback import chat_template_of
from qlora_space.data.template.infer_layout import learn_skeleton, marked_turns, shape_of
from qlora_space.data.template.layout import Skeleton, SkeletonUnknown, TemplateRefused
from qlora_space.data.template.process import Job, Page, template_process
from qlora_space.data.template.proof import Tokens, runs_of
from qlora_space.data.template.tokenizer import added_token_texts, adds_bos, special_token_texts
from qlora_space.data.template.trace import Recording
from qlora_space.data.template.turn_order import (
    Layout,
    Tools,
    Waiting,
    job_of,
    placed,
    refusal_of,
    tails_of,
)

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MOST_LAYOUTS = 4096
_STYLES = (Style(), Style(in_parts=True))
_CALL_STYLES = (
    *_STYLES,
    Style(null_content=True),
    Style(text_arguments=True),
    Style(null_content=True, text_arguments=True),
)

Method = Literal["markers", "derivation"]


class Renderer:
    """Renders and tokenizes examples for one tokenizer. Learns each order of turns once.

    `asks_always`: let the template itself write every row, also where it is certain what it writes.
    """

    def __init__(
        self,
        tokenizer: Any,
        format: Format = Format.MESSAGES,
        assistant_only_loss: bool = True,
        *,
        asks_always: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.format = format
        self.template = chat_template_of(tokenizer, format)
        self.has_own_template = bool(tokenizer.chat_template)
        self.folds_system = False
        self.drops_reasoning = False
        self.matches_prompt = True
        self.method: Method = "markers" if _MARKERS.search(self.template) else "derivation"
        self._assistant_only_loss = assistant_only_loss
        self._aligner = Aligner(tokenizer)
        self._added = _any_of(added_token_texts(tokenizer))
        self._special = _any_of(special_token_texts(tokenizer))
        self._layouts: dict[object, Layout | RowProblem] = {}
        self._asks_always = asks_always
        self._bos = tokenizer.bos_token if adds_bos(tokenizer) else ""

    def tokenize(self, examples: Sequence[Example]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for each example, or why there are none.

        Raises ModelError if the template takes too much time or memory.
        """
        return self.align(self.render(examples))

    def align(self, rendered: Sequence[Rendered | RowProblem]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for what was rendered."""
        tokens = iter(self._aligner.tokenize([r for r in rendered if isinstance(r, Rendered)]))
        found = [next(tokens) if isinstance(r, Rendered) else r for r in rendered]
        return found if self._assistant_only_loss else [_all_trained(each) for each in found]

    def render(self, examples: Sequence[Example]) -> list[Rendered | RowProblem]:
        """The documents as text. Raises TemplateSurprise."""
        waiting = [self._waiting(example) for example in examples]
        jobs = [each.job for each in waiting if isinstance(each, Waiting)]
        pages = iter(self._pages(jobs))
        return [
            placed(each, next(pages)) if isinstance(each, Waiting) else each for each in waiting
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers: exactly the trained text up to the answer.

        Raises ModelError if the template refuses the conversation.
        """
        if self.format is Format.TEXT:
            return self._aligner.encode(self._bos + "\n\n".join(m.content for m in messages))
        # Any answer does: what stands before it does not depend on it. Going through training's own
        # way makes the ids those of training.
        waiting = self._chat((*messages, Message("assistant", "x")))
        if isinstance(waiting, Waiting):
            waiting = placed(waiting, self._pages([waiting.job])[0])
        tokens = self._aligner.tokenize([waiting])[0] if isinstance(waiting, Rendered) else waiting
        if isinstance(tokens, RowProblem):
            raise ModelError(tokens.message, "Change the turns, or choose another base.")
        return tokens.input_ids[: runs_of(tokens.trained)[-1][0]]

    def _waiting(self, example: Example) -> Waiting | Rendered | RowProblem:
        if isinstance(example, str):
            text = self._bos + example + (self.tokenizer.eos_token or "")
            return Rendered(text, ((len(self._bos), len(text)),), ("",))
        texts = [text for message in example for text in _texts_of(message)]
        # Conversations in JSON inside JSON come here unread.
        if not all(map(is_utf8, texts)):
            return RowProblem("not_utf8", "A turn has half of a character.")
        if any(map(self._special.search, texts)):
            return RowProblem("special_token", "A turn contains one of the model's special tokens.")
        waiting = self._chat(example)
        if isinstance(waiting, RowProblem) or self._asks_always:
            return waiting
        foreseen = waiting.layout.foresee(waiting.turns)
        if foreseen is None or waiting.layout.is_due:
            return replace(waiting, foreseen=foreseen)
        return foreseen

    def _chat(self, messages: Messages) -> Waiting | RowProblem:
        tools, turns = split_tools(messages)
        layout = self._layout(messages[0].content if tools else "", tools, turns)
        if isinstance(layout, RowProblem):
            return layout
        turns = _folded(turns) if layout.folds_system else turns
        return Waiting(turns, tools, layout)

    def _pages(self, jobs: Sequence[Job]) -> list[Page | TemplateRefused]:
        if not jobs:
            return []
        special = self.tokenizer.special_tokens_map
        return template_process().render(self.template, special, jobs)

    def _layout(self, tools_key: str, tools: Tools, turns: Messages) -> Layout | RowProblem:
        # Some templates write today's date.
        key = (tools_key, tuple(map(shape_of, turns)), datetime.date.today())
        if key not in self._layouts:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[key] = self._learn(tools, key[1])
        return self._layouts[key]

    def _learn(self, tools: Tools, shapes: Messages) -> Layout | RowProblem:
        """As it is; else with the system turn before the first question; else in another style."""
        orders = [(shapes, False)]
        if [shape.role for shape in shapes[:2]] == ["system", "user"]:
            orders.append((shapes[1:], True))
        styles = _CALL_STYLES if any(shape.calls for shape in shapes) else _STYLES
        problem: RowProblem | None = None
        for style, (kept, folds) in itertools.product(styles, orders):
            try:
                skeleton = self._learn_as_is(tools, kept, style)
            except TemplateRefused as refusal:
                problem = problem or refusal_of(refusal, _needs_tools(tools, shapes))
            except SkeletonUnknown as unknown:
                words = str(unknown)
                problem = problem or RowProblem(unknown.code, f"{words[0].upper()}{words[1:]}.")
            else:
                self.folds_system |= folds
                self.matches_prompt &= skeleton.matches_prompt
                self.drops_reasoning |= bool(shapes[-1].reasoning) and not (
                    skeleton.slots[-1].shows_reasoning
                )
                recording = self._recording(tools, kept, style, skeleton)
                return Layout(skeleton, folds, style, tails_of(skeleton, self._added), recording)
        assert problem is not None
        return problem

    def _learn_as_is(self, tools: Tools, shapes: Messages, style: Style) -> Skeleton:
        def page(messages: Sequence[Message], prompt: bool, marks: bool = False) -> Page:
            (found,) = self._pages([job_of(messages, tools, style, prompt, marks)])
            if isinstance(found, TemplateRefused):
                raise found
            return found

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            return page(messages, add_generation_prompt).text

        def marked(messages: Sequence[Message]) -> Sequence[tuple[int, int]]:
            return page(messages, False, marks=True).marked

        eos = self.tokenizer.eos_token or ""
        marks = marked if self.method == "markers" else None
        skeleton = learn_skeleton(shapes, render, self._added, eos, marks)
        names = [tool["function"]["name"] for tool in tools or ()]
        if not all(name in "".join(skeleton.literals) for name in names):
            raise SkeletonUnknown("the chat template has no place for tools", "no_tools")
        return skeleton

    def _recording(
        self, tools: Tools, shapes: Messages, style: Style, skeleton: Skeleton
    ) -> Recording | None:
        """What the template asked about contents, if it asked all it does and the skeleton is right."""
        if any(shape.calls or shape.reasoning for shape in shapes):
            return None
        job = job_of(marked_turns(shapes), tools, style, with_recording=True)
        (page,) = self._pages([job])
        recording = None if isinstance(page, TemplateRefused) else page.recording
        return recording if recording and recording.says_the_same_as(skeleton) else None


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], format: Format = Format.MESSAGES
) -> list[int]:
    """Token ids to generate from: the text as trained on, up to the answer. Raises ModelError."""
    return Renderer(tokenizer, format).prompt_ids(messages)


def _folded(messages: Messages) -> Messages:
    system, user, *rest = messages
    return (Message("user", f"{system.content}\n\n{user.content}"), *rest)


def _needs_tools(tools: Tools, shapes: Messages) -> bool:
    return bool(tools) or any(shape.calls or shape.role == "tool" for shape in shapes)


def _texts_of(message: Message) -> tuple[str, ...]:
    return (message.content, message.reasoning, *(call.arguments for call in message.calls))


def _all_trained(tokens: Tokens | RowProblem) -> Tokens | RowProblem:
    if isinstance(tokens, RowProblem):
        return tokens
    return Tokens(tokens.input_ids, [True] * len(tokens.input_ids))


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
