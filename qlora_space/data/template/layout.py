"""The layout of a conversation as its chat template writes it: literal text and slots.

`learn_skeleton.py` reads it off a marked conversation. A real conversation is then rendered, and its
answers are taken from the slots only if the text fits the skeleton in exactly one way.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.data.messages import Message, Role

# What a template does to the ends of a content.
KEEP, TRIM_LINES, TRIM_ALL, AS_JSON = "", "\n", "all", "json"


class TemplateRefused(Exception):
    """The template raised for these roles. The text is the template's own words."""


class SkeletonUnknown(Exception):
    """The layout could not be learned; the text says why, `code` is that of the row's problem."""

    def __init__(self, why: str, code: str = "unproved_mask") -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Slot:
    """Where a message stands. An opaque one holds more than its content: calls, reasoning."""

    message: int
    role: Role
    trim_left: str = KEEP
    trim_right: str = KEEP
    is_opaque: bool = False
    shows_reasoning: bool = False

    def shown(self, content: str) -> str:
        """The content as the template writes it."""
        if self.trim_left == AS_JSON:
            return json.dumps(content, ensure_ascii=False)[1:-1]
        return _trimmed_right(_trimmed_left(content, self.trim_left), self.trim_right)


@dataclass(frozen=True)
class Answer:
    """What is trained around a slot: so many characters before it and after it."""

    lead: str
    end: str


@dataclass(frozen=True)
class Skeleton:
    """literals[0] slots[0] literals[1] ... slots[-1] literals[-1]"""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]
    answers: tuple[Answer | None, ...]
    appended_end: str
    matches_prompt: bool

    def spans(self, text: str, messages: Sequence[Message]) -> list[tuple[int, int]] | None:
        """Start and end of what is trained in this text; None where there is any doubt."""
        if not any(slot.is_opaque for slot in self.slots):
            expected, spans = self.fill(messages)
            if expected == text:
                return spans
        return self._locate(text, messages)

    def finish(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with the EOS that the template leaves out."""
        if not self.appended_end:
            return text
        return text[: spans[-1][1] - len(self.appended_end)] + self.appended_end

    def fill(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text with these contents in its slots, none of them opaque, and the spans in it."""
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        position = 0
        for literal, slot, answer in zip(self.literals, self.slots, self.answers, strict=False):
            shown = slot.shown(messages[slot.message].content)
            pieces += (literal, shown)
            start = position + len(literal)
            position = start + len(shown)
            if answer:
                spans.append((start - len(answer.lead), position + len(answer.end)))
        pieces.append(self.literals[-1])
        return "".join(pieces), spans

    def _locate(self, text: str, messages: Sequence[Message]) -> list[tuple[int, int]] | None:
        """Spans in a text whose answers the template rewrote."""
        fixed = self._fixed_pieces(messages)
        places = _only_places(text, fixed)
        if places is None:
            return None
        spans: list[tuple[int, int]] = []
        answered = [(s, a) for s, a in zip(self.slots, self.answers, strict=True) if a]
        edges = [place + len(piece) for place, piece in zip(places, fixed, strict=True)]
        for (slot, answer), start, end in zip(answered, edges, places[1:], strict=False):
            opened = "<think>" if text[:start].rstrip().endswith("<think>") else ""
            if not _says(
                opened + text[start:end], messages[slot.message], slot, opened + answer.lead
            ):
                return None
            spans.append((start, end + len(answer.end)))
        return spans

    def _fixed_pieces(self, messages: Sequence[Message]) -> list[str]:
        """What stands before, between and after the answers, word for word."""
        pieces = [""]
        for literal, slot, answer in zip(self.literals, self.slots, self.answers, strict=False):
            if answer:
                pieces[-1] += literal[: len(literal) - len(answer.lead)]
                pieces.append("")
            else:
                pieces[-1] += literal + slot.shown(messages[slot.message].content)
        pieces[-1] += self.literals[-1]
        return pieces


def _only_places(text: str, pieces: Sequence[str]) -> list[int] | None:
    """Where the pieces stand in this order, first at the start and last at the end, if in one way only.

    The leftmost and the rightmost way are the same exactly if there is no other.
    """
    if not all(pieces[1:-1]) or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    first, last = 0, len(text) - len(pieces[-1])
    leftmost = [first]
    at = len(pieces[0])
    for piece in pieces[1:-1]:
        found = text.find(piece, at)
        if found < 0:
            return None
        leftmost.append(found)
        at = found + len(piece)
    rightmost = [last]
    until = last
    for piece in reversed(pieces[1:-1]):
        until = text.rfind(piece, 0, until)
        rightmost.append(until)
    if at > last or leftmost != [first, *reversed(rightmost[1:])]:
        return None
    return [*leftmost, last]


def _says(shown: str, message: Message, slot: Slot, lead: str) -> bool:
    """Whether the text of an answer says everything that the message does."""
    if not slot.is_opaque:
        return _says_the_same(shown, message.content, lead)
    wanted = [message.content.rpartition("</think>")[2], *_words_of_calls(message)]
    if slot.shows_reasoning:
        wanted.append(message.reasoning)
    squeezed = _squeezed(shown)
    as_json = (_squeezed(json.dumps(text, ensure_ascii=False)[1:-1]) for text in wanted)
    return all(
        _squeezed(text) in squeezed or escaped in squeezed
        for text, escaped in zip(wanted, as_json, strict=True)
    )


def _words_of_calls(message: Message) -> list[str]:
    words = []
    for call in message.calls:
        words.append(call.name)
        try:
            words += _leaves(json.loads(call.arguments))
        except (ValueError, RecursionError):
            words.append(call.arguments)
    return words


def _leaves(value: Any) -> Iterator[str]:
    """Keys and texts anywhere in a JSON value; numbers have many spellings."""
    if isinstance(value, dict):
        yield from itertools.chain(value, *map(_leaves, value.values()))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_leaves, value))
    elif isinstance(value, str):
        yield value


def _says_the_same(shown: str, content: str, lead: str) -> bool:
    """Equal but for white space, the lead, and reasoning that the template leaves out."""
    without_reasoning = content.rpartition("</think>")[2]
    says = (content, without_reasoning, lead + content, lead + without_reasoning)
    return _squeezed(shown) in map(_squeezed, says)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _trimmed_left(content: str, trim: str) -> str:
    if trim == KEEP:
        return content
    return content.lstrip() if trim == TRIM_ALL else content.lstrip(trim)


def _trimmed_right(content: str, trim: str) -> str:
    if trim == KEEP:
        return content
    return content.rstrip() if trim == TRIM_ALL else content.rstrip(trim)
