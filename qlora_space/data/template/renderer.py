"""Turns examples into tokens and the mask of those that are trained, and proves the mask row by row.

Trained are the answers with the token that ends each, and what the template leaves to the model before
an answer (an empty think block, a space): that is, what generation has to produce after the generation
prompt. Tool calls and reasoning are trained as the template writes them. Nothing else.
"""

import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_space.core.errors import ModelError
from qlora_space.core.options import Format
from qlora_space.data.messages import (
    Example,
    Message,
    Messages,
    Style,
    as_template_input,
    split_tools,
)
from qlora_space.data.rows import RowProblem, is_utf8
from qlora_space.data.template.infer_layout import infer_layout, probe_conversation, shape_of
from qlora_space.data.template.layout import Layout, LayoutUnknown, TemplateRefused
from qlora_space.data.template.loss_mask import Aligner, Rendered, Tokens, trained_spans
from qlora_space.data.template.process import RenderJob, RenderResult, template_process
from qlora_space.data.template.tokenizer import (
    added_token_texts,
    adds_bos,
    chat_template_of,
    num_embeddings,
    special_token_texts,
)
from qlora_space.data.template.trace import TemplateTrace

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ABOUT_ROLES = re.compile(r"role|alternat|must (start|begin|follow)|first|after", re.IGNORECASE)
_MAX_TURN_ORDERS = 4096
_ROWS_BETWEEN_CHECKS = 64
_STYLES = (Style(), Style(in_parts=True))
_CALL_STYLES = (
    *_STYLES,
    Style(null_content=True),
    Style(text_arguments=True),
    Style(null_content=True, text_arguments=True),
)

Tools = list[dict[str, Any]] | None
Method = Literal["markers", "derivation"]
"""Whether answers are found by the template's own {% generation %} blocks or by its layout alone."""


class WrongPrediction(Exception):
    """The template wrote something other than its trace predicted: do without predictions."""


@dataclass
class TurnOrder:
    """One order of turns (system, user, assistant, ...): its layout, and how the template takes its messages.

    `trace`: for which contents the template is certain to write what the layout says.
    """

    layout: Layout
    folds_system: bool
    style: Style
    prompt_tails: tuple[str | None, ...]
    trace: TemplateTrace | None
    rows_predicted: int = 0

    def predict(self, turns: Messages) -> Rendered | None:
        """What the template would write, if that is certain without running it."""
        if not (self.trace and self.trace.holds_for([turn.content for turn in turns])):
            return None
        self.rows_predicted += 1
        return self.rendered(*self.layout.fill(turns), turns)

    @property
    def is_check_due(self) -> bool:
        """Whether the template is run all the same: for the first row, and for one in 64 later ones."""
        return self.rows_predicted % _ROWS_BETWEEN_CHECKS == 1

    def locate(
        self, turns: Messages, result: RenderResult | TemplateRefused
    ) -> Rendered | RowProblem:
        """The text that the template wrote, with the spans of the answers if they are certain."""
        if isinstance(result, TemplateRefused):
            return _problem_of_refusal(result, needs_tools=False)
        spans = self.layout.answer_spans(result.text, turns)
        if spans is None:
            return RowProblem("unproved_mask", "The template rewrites an answer of this row.")
        return self.rendered(result.text, spans, turns)

    def rendered(self, text: str, spans: list[tuple[int, int]], turns: Messages) -> Rendered:
        text = self.layout.append_eos(text, spans)
        return Rendered(text, tuple(spans), self.prompt_tails, self.layout.are_trained(turns))


@dataclass(frozen=True)
class _Pending:
    """A conversation that the template has yet to write, and what it must write if that is certain."""

    turns: Messages
    tools: Tools
    order: TurnOrder
    predicted: Rendered | None = None

    @property
    def job(self) -> RenderJob:
        return _job(self.turns, self.tools, self.order.style)

    def rendered(self, result: RenderResult | TemplateRefused) -> Rendered | RowProblem:
        """Raises WrongPrediction."""
        found = self.order.locate(self.turns, result)
        if self.predicted is not None and found != self.predicted:
            raise WrongPrediction
        return found


class Renderer:
    """Renders and tokenizes examples for one tokenizer. Infers the layout of each order of turns once.

    `predict`: where it is certain what the template writes, do not run it (but for one row in 64).
    """

    def __init__(
        self,
        tokenizer: Any,
        format: Format = Format.MESSAGES,
        assistant_only_loss: bool = True,
        *,
        predict: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.embeddings = num_embeddings(tokenizer)
        self.format = format
        self.template = chat_template_of(tokenizer, format)
        self.has_own_template = bool(tokenizer.chat_template)
        self.folds_system = False
        self.drops_reasoning = False
        self.matches_prompt = True
        self.method: Method = "markers" if _GENERATION_BLOCK.search(self.template) else "derivation"
        self._assistant_only_loss = assistant_only_loss
        self._aligner = Aligner(tokenizer)
        self._added_tokens = _any_of(added_token_texts(tokenizer))
        self._special_tokens = _any_of(special_token_texts(tokenizer))
        self._turn_orders: dict[object, TurnOrder | RowProblem] = {}
        self._predict = predict
        self._bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
        self._eos = tokenizer.eos_token or ""

    def tokenize(self, examples: Sequence[Example]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for each example, or why there are none.

        Raises ModelError if the template takes too much time or memory, WrongPrediction as `render`.
        """
        return self.align(self.render(examples))

    def render(self, examples: Sequence[Example]) -> list[Rendered | RowProblem]:
        """The documents as text. Raises ModelError, WrongPrediction unless `predict` is off."""
        pending = [self._prepare(example) for example in examples]
        jobs = [each.job for each in pending if isinstance(each, _Pending)]
        results = iter(self._run_template(jobs))
        return [
            each.rendered(next(results)) if isinstance(each, _Pending) else each for each in pending
        ]

    def align(self, rendered: Sequence[Rendered | RowProblem]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for what was rendered."""
        tokens = iter(self._aligner.tokenize([r for r in rendered if isinstance(r, Rendered)]))
        found = [next(tokens) if isinstance(r, Rendered) else r for r in rendered]
        if self._assistant_only_loss:
            return found
        return [self._all_trained(*each) for each in zip(rendered, found, strict=True)]

    def _all_trained(
        self, rendered: Rendered | RowProblem, tokens: Tokens | RowProblem
    ) -> Tokens | RowProblem:
        """Every token but those of answers that must not be learned."""
        if isinstance(rendered, RowProblem) or isinstance(tokens, RowProblem):
            return tokens
        if all(rendered.are_trained):
            return Tokens(tokens.input_ids, [True] * len(tokens.input_ids))
        (left_out,) = self._aligner.tokenize([rendered.inverted])
        if isinstance(left_out, RowProblem):
            return left_out
        return Tokens(left_out.input_ids, [not flag for flag in left_out.trained])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers: exactly the trained text up to the answer.

        Raises ModelError if the template refuses the conversation.
        """
        if self.format is Format.TEXT:
            return self._aligner.encode(self._bos + "\n\n".join(m.content for m in messages))
        # Any answer will do: what stands before it does not depend on it. Rendering as training does
        # makes the ids those of training.
        found = self._prepare_chat((*messages, Message("assistant", "x")))
        if isinstance(found, _Pending):
            found = found.rendered(self._run_template([found.job])[0])
        tokens = self._aligner.tokenize([found])[0] if isinstance(found, Rendered) else found
        if isinstance(tokens, RowProblem):
            raise ModelError(tokens.message, "Change the turns, or choose another base.")
        return tokens.input_ids[: trained_spans(tokens.trained)[-1][0]]

    def _prepare(self, example: Example) -> _Pending | Rendered | RowProblem:
        if isinstance(example, str):
            text = self._bos + example + self._eos
            return Rendered(text, ((len(self._bos), len(text)),), ("",), (True,))
        texts = [text for message in example for text in _texts_of(message)]
        # Conversations in JSON within JSON were not checked when they were read.
        if not all(map(is_utf8, texts)):
            return RowProblem("not_utf8", "A turn has half of a character.")
        if any(map(self._special_tokens.search, texts)):
            return RowProblem("special_token", "A turn contains one of the model's special tokens.")
        pending = self._prepare_chat(example)
        if isinstance(pending, RowProblem) or not self._predict:
            return pending
        predicted = pending.order.predict(pending.turns)
        if predicted is None or pending.order.is_check_due:
            return replace(pending, predicted=predicted)
        return predicted

    def _prepare_chat(self, messages: Messages) -> _Pending | RowProblem:
        tools, turns = split_tools(messages)
        order = self._turn_order(messages[0].content if tools else "", tools, turns)
        if isinstance(order, RowProblem):
            return order
        turns = _fold_system(turns) if order.folds_system else turns
        return _Pending(turns, tools, order)

    def _run_template(self, jobs: Sequence[RenderJob]) -> list[RenderResult | TemplateRefused]:
        if not jobs:
            return []
        special_tokens = self.tokenizer.special_tokens_map
        return template_process().render(self.template, special_tokens, jobs)

    def _turn_order(self, tools_key: str, tools: Tools, turns: Messages) -> TurnOrder | RowProblem:
        # Some templates write today's date.
        key = (tools_key, tuple(map(shape_of, turns)), datetime.date.today())
        if key not in self._turn_orders:
            if len(self._turn_orders) >= _MAX_TURN_ORDERS:
                self._turn_orders.pop(next(iter(self._turn_orders)))
            self._turn_orders[key] = self._infer_turn_order(tools, key[1])
        return self._turn_orders[key]

    def _infer_turn_order(self, tools: Tools, shapes: Messages) -> TurnOrder | RowProblem:
        """As it is; else with the system turn before the first question; else in another style."""
        variants = [(shapes, False)]
        if [shape.role for shape in shapes[:2]] == ["system", "user"]:
            variants.append((shapes[1:], True))
        styles = _CALL_STYLES if any(shape.calls for shape in shapes) else _STYLES
        problem: RowProblem | None = None
        for style, (turns, folds_system) in itertools.product(styles, variants):
            try:
                layout = self._infer_layout(tools, turns, style)
            except TemplateRefused as refusal:
                problem = problem or _problem_of_refusal(refusal, _needs_tools(tools, shapes))
            except LayoutUnknown as unknown:
                reason = str(unknown)
                problem = problem or RowProblem(unknown.code, f"{reason[0].upper()}{reason[1:]}.")
            else:
                self.folds_system |= folds_system
                self.matches_prompt &= layout.matches_prompt
                self.drops_reasoning |= bool(shapes[-1].reasoning) and not (
                    layout.slots[-1].shows_reasoning
                )
                trace = self._trace(tools, turns, style, layout)
                prompt_tails = layout.prompt_tails(self._added_tokens)
                return TurnOrder(layout, folds_system, style, prompt_tails, trace)
        assert problem is not None
        return problem

    def _infer_layout(self, tools: Tools, shapes: Messages, style: Style) -> Layout:
        def run(messages: Sequence[Message], prompt: bool, spans: bool = False) -> RenderResult:
            (result,) = self._run_template([_job(messages, tools, style, prompt, spans)])
            if isinstance(result, TemplateRefused):
                raise result
            return result

        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            return run(messages, add_generation_prompt).text

        def generation_spans(messages: Sequence[Message]) -> Sequence[tuple[int, int]]:
            return run(messages, False, spans=True).generation_spans

        own_spans = generation_spans if self.method == "markers" else None
        layout = infer_layout(shapes, render, self._added_tokens, self._eos, own_spans)
        names = [tool["function"]["name"] for tool in tools or ()]
        if not all(name in "".join(layout.literals) for name in names):
            raise LayoutUnknown("the chat template does not write the tools", "no_tools")
        return layout

    def _trace(
        self, tools: Tools, shapes: Messages, style: Style, layout: Layout
    ) -> TemplateTrace | None:
        """What the template asked about contents, if that is all it does and the layout is right."""
        if any(shape.calls or shape.reasoning for shape in shapes):
            return None
        job = _job(probe_conversation(shapes), tools, style, with_trace=True)
        (result,) = self._run_template([job])
        trace = None if isinstance(result, TemplateRefused) else result.trace
        return trace if trace and trace.matches(layout) else None


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], format: Format = Format.MESSAGES
) -> list[int]:
    """Token ids to generate from: the text as trained on, up to the answer. Raises ModelError."""
    return Renderer(tokenizer, format).prompt_ids(messages)


def _job(
    messages: Sequence[Message],
    tools: Tools,
    style: Style,
    add_generation_prompt: bool = False,
    with_generation_spans: bool = False,
    with_trace: bool = False,
) -> RenderJob:
    dicts = tuple(as_template_input(message, style) for message in messages)
    return RenderJob(dicts, tools, add_generation_prompt, with_generation_spans, with_trace)


def _problem_of_refusal(refusal: TemplateRefused, needs_tools: bool) -> RowProblem:
    text = str(refusal).strip().rstrip(".")[:200]
    if needs_tools:
        return RowProblem("no_tools", f"The chat template refuses tool calls: {text}.")
    code = "role_order" if _ABOUT_ROLES.search(text) else "template_refused"
    return RowProblem(code, f"The chat template refuses this order of turns: {text}.")


def _fold_system(messages: Messages) -> Messages:
    """With the system turn before the first question, for templates that have none."""
    system, user, *rest = messages
    return (Message("user", f"{system.content}\n\n{user.content}"), *rest)


def _needs_tools(tools: Tools, shapes: Messages) -> bool:
    return bool(tools) or any(shape.calls or shape.role == "tool" for shape in shapes)


def _texts_of(message: Message) -> tuple[str, ...]:
    return (message.content, message.reasoning, *(call.arguments for call in message.calls))


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
