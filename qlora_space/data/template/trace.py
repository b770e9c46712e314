"""What a chat template asked about contents before it wrote its text, as traced in the template's process.

A trace comes from a program of unknown origin, so it is parsed strictly. All it does is to save running
the template for rows whose contents answer every question as the traced conversation did.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.data.template.layout import KEEP, TRIM_ALL, TRIM_LINES, Layout

_PREDICATES: dict[str, Callable[[str, str], bool]] = {
    "contains": str.__contains__,
    "starts": str.startswith,
    "ends": str.endswith,
    "equals": str.__eq__,
}
_MAX_CHARS = 2**16  # of all questions: every row has to answer them
_TRIMS: dict[str, Callable[[str, str | None], str]] = {"lstrip": str.lstrip, "rstrip": str.rstrip}


@dataclass(frozen=True)
class Piece:
    """The content of a turn after these trims, each a name in _TRIMS and characters or None."""

    turn: int
    trims: tuple[tuple[str, str | None], ...] = ()

    def text(self, contents: Sequence[str]) -> str:
        text = contents[self.turn]
        for name, characters in self.trims:
            text = _TRIMS[name](text, characters)
        return text


Pieces = tuple[str | Piece, ...]


@dataclass(frozen=True)
class Question:
    """What the template asked about some joined pieces, and the answer it got.

    `kind` is a name in _PREDICATES.
    """

    kind: str
    pieces: Pieces
    argument: str
    answer: bool

    def has_same_answer(self, contents: Sequence[str]) -> bool:
        texts = [each if isinstance(each, str) else each.text(contents) for each in self.pieces]
        return _PREDICATES[self.kind]("".join(texts), self.argument) is self.answer


@dataclass(frozen=True)
class TemplateTrace:
    """The pieces that the template wrote of a conversation, and the questions it asked before.

    The same turns with other contents give the same pieces if they answer every question alike: the
    template learns nothing else about them.
    """

    pieces: Pieces
    questions: tuple[Question, ...]

    def holds_for(self, contents: Sequence[str]) -> bool:
        return all(question.has_same_answer(contents) for question in self.questions)

    def matches(self, layout: Layout) -> bool:
        """Whether the pieces are the literals and slots of this layout."""
        expected: list[str | tuple[int, str, str]] = []
        for literal, slot in itertools.zip_longest(layout.literals, layout.slots):
            expected += [literal] if literal else []
            if slot is not None:
                expected.append((slot.message, slot.trim_left, slot.trim_right))
        return expected == [
            piece if isinstance(piece, str) else (piece.turn, *_slot_trims(piece))
            for piece in self.pieces
        ]


def parse_trace(value: Any, num_turns: int) -> TemplateTrace | None:
    """The trace of a conversation of `num_turns`; None if it is malformed or asks too much."""
    try:
        if len(str(value["questions"])) > _MAX_CHARS:
            return None
        questions = (
            Question(
                _one_of(_PREDICATES, kind),
                _pieces(pieces, num_turns),
                _text(argument),
                answer is True,
            )
            for kind, pieces, argument, answer in value["questions"]
        )
        return TemplateTrace(_pieces(value["pieces"], num_turns), tuple(questions))
    except (TypeError, ValueError, LookupError):
        return None


def _pieces(value: Any, num_turns: int) -> Pieces:
    return tuple(each if isinstance(each, str) else _piece(each, num_turns) for each in value)


def _piece(value: Any, num_turns: int) -> Piece:
    turn, trims = value
    if turn not in range(num_turns):
        raise ValueError(turn)
    return Piece(turn, tuple((_one_of(_TRIMS, name), _characters(what)) for name, what in trims))


def _one_of(names: Any, name: Any) -> str:
    if name not in names:
        raise ValueError(name)
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _characters(value: Any) -> str | None:
    return None if value is None else _text(value)


def _slot_trims(piece: Piece) -> tuple[str | None, str | None]:
    """What is trimmed at both ends, as a Slot says it; None for what a Slot cannot say."""
    left, right = (
        {characters for name, characters in piece.trims if name == side}
        for side in ("lstrip", "rstrip")
    )
    return _slot_trim(left), _slot_trim(right)


def _slot_trim(characters: set[str | None]) -> str | None:
    """Trimming lines before or after trimming all whitespace changes nothing."""
    if not characters:
        return KEEP
    if None in characters:
        return TRIM_ALL if characters <= {None, "\n"} else None
    return TRIM_LINES if characters == {"\n"} else None
