"""Turns examples into tokens and the mask of those that are trained, and proves the mask row by row.

Trained are the answers with the token that ends each, and what the template leaves to the model in
front of an answer (an empty think block, a space): that is, what generation has to produce after the
generation prompt. Nothing else.
"""

import datetime
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jinja2

from qlora_space.data.fallback import chat_template_of
from qlora_space.data.proof import Tokens, prove_all, runs_of
from qlora_space.data.rows import Example, Message, Role, RowProblem
from qlora_space.data.skeleton import (
    Skeleton,
    SkeletonUnknown,
    TemplateRefused,
    learn_skeleton,
)
from qlora_space.data.tokenizer import added_token_texts, adds_bos, special_token_texts
from qlora_space.errors import ModelError
from qlora_space.request import Format

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What a template's own code may raise while it is rendered.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_ROLE_WORDS = re.compile(r"role|alternat|must (start|begin|follow)|first|after", re.IGNORECASE)

Method = Literal["markers", "derivation"]


@dataclass(frozen=True)
class Rendered:
    """A document as text, the spans that are trained, and what is fixed in front of each.

    `tails`: the prompt's text after its last special token, where it is the same for all rows.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tails: tuple[str | None, ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(self.text[start:end] for start, end in self.spans)


@dataclass(frozen=True)
class _Layout:
    """A skeleton, and how messages have to be handed to the template for it."""

    skeleton: Skeleton
    folds_system: bool
    in_parts: bool


class Renderer:
    """Renders and tokenizes examples for one tokenizer. Learns each order of roles once."""

    def __init__(
        self,
        tokenizer: Any,
        format: Format = Format.MESSAGES,
        assistant_only_loss: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.format = format
        self.template = chat_template_of(tokenizer, format)
        self.has_own_template = bool(tokenizer.chat_template)
        self.folds_system = False
        self.matches_prompt = True
        self.method: Method = "markers" if _MARKERS.search(self.template) else "derivation"
        self._assistant_only_loss = assistant_only_loss
        self._backend = tokenizer.backend_tokenizer
        self._added = _any_of(added_token_texts(tokenizer))
        self._special = _any_of(special_token_texts(tokenizer))
        self._layouts: dict[object, _Layout | RowProblem] = {}
        self._bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
        self._encode_tail = lru_cache(maxsize=256)(self._encode)

    def tokenize(self, examples: Sequence[Example]) -> list[Tokens | RowProblem]:
        """Tokens with a proved mask for each example, or why there are none."""
        rendered = [self.render(example) for example in examples]
        good = [r for r in rendered if isinstance(r, Rendered)]
        encodings = self._backend.encode_batch([r.text for r in good], add_special_tokens=False)
        first = [self._aligned(r, e) for r, e in zip(good, encodings, strict=True)]
        reasons = prove_all(self.tokenizer, first, [r.answers for r in good])
        proved = iter(
            self._checked(r, t, why) for r, t, why in zip(good, first, reasons, strict=True)
        )
        return [next(proved) if isinstance(r, Rendered) else r for r in rendered]

    def render(self, example: Example) -> Rendered | RowProblem:
        """The document as text."""
        if isinstance(example, str):
            text = self._bos + example + (self.tokenizer.eos_token or "")
            return Rendered(text, ((len(self._bos), len(text)),), ("",))
        if any(self._special.search(message.content) for message in example):
            return RowProblem("special_token", "A turn contains one of the model's special tokens.")
        return self._render_chat(example)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers: exactly the trained text up to the answer.

        Raises ModelError if the template refuses the conversation.
        """
        if self.format is Format.TEXT:
            return self._encode(self._bos + "\n\n".join(m.content for m in messages))
        # Any answer does: what stands before it does not depend on it. Going through training's own
        # way makes the ids those of training.
        rendered = self._render_chat((*messages, Message("assistant", "x")))
        if isinstance(rendered, RowProblem):
            raise ModelError(rendered.message, "Change the order of the turns.")
        encoding = self._backend.encode(rendered.text, add_special_tokens=False)
        tokens = self._aligned(rendered, encoding)
        return tokens.input_ids[: runs_of(tokens.trained)[-1][0]]

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _render_chat(self, messages: tuple[Message, ...]) -> Rendered | RowProblem:
        learned = self._layout(tuple(message.role for message in messages))
        if isinstance(learned, RowProblem):
            return learned
        skeleton = learned.skeleton
        messages = _folded(messages) if learned.folds_system else messages
        try:
            text = self._apply(messages, False, learned.in_parts)
        except TemplateRefused as refusal:
            return _refusal(refusal)
        expected, spans = skeleton.fill(messages)
        if expected != text:
            spans = skeleton.locate(text, messages)
            if spans is None:
                return RowProblem("unproved_mask", "The template rewrites an answer of this row.")
        text = skeleton.finish(text, spans)
        return Rendered(text, tuple(spans), _tails(skeleton, self._added))

    def _layout(self, roles: tuple[Role, ...]) -> _Layout | RowProblem:
        # Some templates write today's date.
        key = (roles, datetime.date.today())
        if key not in self._layouts:
            self._layouts[key] = self._learn(roles)
        return self._layouts[key]

    def _learn(self, roles: tuple[Role, ...]) -> _Layout | RowProblem:
        """As it is; else with the system turn before the first question; else as content blocks."""
        attempts = [(roles, False, False), (roles, False, True)]
        if roles[:2] == ("system", "user"):
            attempts[1:1] = [(roles[1:], True, False)]
            attempts.append((roles[1:], True, True))
        problem: RowProblem | None = None
        for kept_roles, folds, in_parts in attempts:
            try:
                skeleton = self._learn_as_is(kept_roles, in_parts)
            except TemplateRefused as refusal:
                problem = problem or _refusal(refusal)
            except SkeletonUnknown as unknown:
                words = str(unknown)
                problem = problem or RowProblem("unproved_mask", f"{words[0].upper()}{words[1:]}.")
            else:
                self.folds_system |= folds
                self.matches_prompt &= skeleton.matches_prompt
                return _Layout(skeleton, folds, in_parts)
        assert problem is not None
        return problem

    def _learn_as_is(self, roles: tuple[Role, ...], in_parts: bool) -> Skeleton:
        def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
            return self._apply(messages, add_generation_prompt, in_parts)

        def marked(messages: Sequence[Message]) -> list[tuple[int, int]]:
            return self._marked_spans(messages, in_parts)

        eos = self.tokenizer.eos_token or ""
        marks = marked if self.method == "markers" else None
        return learn_skeleton(roles, render, self._added, eos, marks)

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool, parts: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                _as_dicts(messages, parts),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except _TEMPLATE_ERRORS as error:
            raise TemplateRefused(str(error) or type(error).__name__) from error

    def _marked_spans(self, messages: Sequence[Message], in_parts: bool) -> list[tuple[int, int]]:
        try:
            marked = self.tokenizer.apply_chat_template(
                _as_dicts(messages, in_parts),
                chat_template=self.template,
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"return_offsets_mapping": True},
            )
        except _TEMPLATE_ERRORS as error:
            raise TemplateRefused(str(error) or type(error).__name__) from error
        offsets = marked["offset_mapping"]
        runs = runs_of([bool(flag) for flag in marked["assistant_masks"]])
        return [(offsets[first][0], offsets[last - 1][1]) for first, last in runs]

    def _aligned(self, rendered: Rendered, encoding: Any) -> Tokens:
        """Tokens of the whole text; cut at the spans where a token would lie across an edge."""
        ids: list[int] = encoding.ids
        trained = [False] * len(ids)
        for (start, end), tail in zip(rendered.spans, rendered.tails, strict=True):
            first = _token_at(encoding, start, len(rendered.text))
            last = _token_at(encoding, end, len(rendered.text))
            if first is None or last is None:
                return self._cut(rendered)
            if not self._prompt_is_stable(rendered.text, start, ids[:first], tail):
                return self._cut(rendered)
            trained[first:last] = [True] * (last - first)
        return Tokens(ids, trained)

    def _prompt_is_stable(self, text: str, start: int, ids: list[int], tail: str | None) -> bool:
        """Whether the prompt alone gives these ids: white space at its end may be cut otherwise."""
        before = text[max(0, start - 2) : start]
        if not before[-1:].isspace() or (before[-1] == "\n" and not before[:1].isspace()):
            return True
        if tail is None:
            return self._encode(text[:start]) == ids
        expected = self._encode_tail(tail)
        return ids[len(ids) - len(expected) :] == expected

    def _cut(self, rendered: Rendered) -> Tokens:
        ids: list[int] = []
        trained: list[bool] = []
        edges = [0, *(edge for span in rendered.spans for edge in span), len(rendered.text)]
        for index, (start, end) in enumerate(itertools.pairwise(edges)):
            piece = self._encode(rendered.text[start:end])
            ids += piece
            trained += [index % 2 == 1] * len(piece)
        return Tokens(ids, trained)

    def _checked(self, rendered: Rendered, tokens: Tokens, why: str) -> Tokens | RowProblem:
        if why:
            tokens = self._cut(rendered)
            (why,) = prove_all(self.tokenizer, [tokens], [rendered.answers])
        if why:
            return RowProblem("unproved_mask", why)
        if not self._assistant_only_loss:
            return Tokens(tokens.input_ids, [True] * len(tokens.input_ids))
        return tokens


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], format: Format = Format.MESSAGES
) -> list[int]:
    """Token ids to generate from: the text as trained on, up to the answer. Raises ModelError."""
    return Renderer(tokenizer, format).prompt_ids(messages)


def _token_at(encoding: Any, position: int, text_length: int) -> int | None:
    """The token that begins at this character; None if none does."""
    if position == text_length:
        return len(encoding)
    token = encoding.char_to_token(position)
    if token is None or encoding.token_to_chars(token)[0] != position:
        return None
    return token


def _tails(skeleton: Skeleton, added: re.Pattern[str]) -> tuple[str | None, ...]:
    tails: list[str | None] = []
    for literal, answer in zip(skeleton.literals, skeleton.answers, strict=False):
        if answer:
            prompt = literal[: len(literal) - len(answer.lead)]
            ends = [match.end() for match in added.finditer(prompt)]
            tails.append(prompt[ends[-1] :] if ends else None)
    return tuple(tails)


def _folded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system, user, *rest = messages
    return (Message("user", f"{system.content}\n\n{user.content}"), *rest)


def _refusal(refusal: TemplateRefused) -> RowProblem:
    text = str(refusal).strip().rstrip(".")[:200]
    code = "role_order" if _ROLE_WORDS.search(text) else "template_refused"
    return RowProblem(code, f"The chat template refuses this order of turns: {text}.")


def _as_dicts(messages: Sequence[Message], in_parts: bool) -> list[dict[str, Any]]:
    if not in_parts:
        return [{"role": m.role, "content": m.content} for m in messages]
    return [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in messages]


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
