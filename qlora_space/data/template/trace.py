"""What a chat template asked about contents before it put its text together, as its process recorded it.

The recording is data from a stranger's program: it is read strictly, and it only ever saves asking the
template for rows that answer all questions as the recorded conversation did.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.data.template.layout import KEEP, TRIM_ALL, TRIM_LINES, Skeleton

_ANSWERS: dict[str, Callable[[str, str], bool]] = {
    "contains": str.__contains__,
    "starts": str.startswith,
    "ends": str.endswith,
    "equals": str.__eq__,
}
_MOST_CHARS = 2**16  # of all questions: each row has to answer them
_TRIMS: dict[str, Callable[[str, str | None], str]] = {"lstrip": str.lstrip, "rstrip": str.rstrip}


@dataclass(frozen=True)
class Piece:
    """The content of a turn after these trims, each a name in _TRIMS and characters or None."""

    turn: int
    trims: tuple[tuple[str, str | None], ...] = ()

    def of(self, contents: Sequence[str]) -> str:
        text = contents[self.turn]
        for how, characters in self.trims:
            text = _TRIMS[how](text, characters)
        return text


Pieces = tuple[str | Piece, ...]


@dataclass(frozen=True)
class Question:
    """What the template asked about some pieces one after the other, and the answer it got."""

    kind: str
    about: Pieces
    argument: str
    answer: bool

    def is_answered_alike(self, contents: Sequence[str]) -> bool:
        texts = [each if isinstance(each, str) else each.of(contents) for each in self.about]
        return _ANSWERS[self.kind]("".join(texts), self.argument) is self.answer


@dataclass(frozen=True)
class Recording:
    """A conversation of which the template wrote these pieces, and the questions it asked on the way.

    The same turns with other contents give the same pieces if they answer every question alike: the
    template learns nothing else about them.
    """

    pieces: Pieces
    questions: tuple[Question, ...]

    def holds_for(self, contents: Sequence[str]) -> bool:
        return all(question.is_answered_alike(contents) for question in self.questions)

    def says_the_same_as(self, skeleton: Skeleton) -> bool:
        """Whether the pieces are the literals and slots of this skeleton."""
        expected: list[str | tuple[int, str, str]] = []
        for literal, slot in itertools.zip_longest(skeleton.literals, skeleton.slots):
            expected += [literal] if literal else []
            if slot is not None:
                expected.append((slot.message, slot.trim_left, slot.trim_right))
        return expected == [
            piece if isinstance(piece, str) else (piece.turn, *_ends(piece))
            for piece in self.pieces
        ]


def read_recording(value: Any, turns: int) -> Recording | None:
    """A recording of a conversation of so many turns; None if it is none, or asks too much."""
    try:
        if len(str(value["asked"])) > _MOST_CHARS:
            return None
        questions = (
            Question(
                _one_of(_ANSWERS, kind), _pieces(about, turns), _text(argument), answer is True
            )
            for kind, about, argument, answer in value["asked"]
        )
        return Recording(_pieces(value["pieces"], turns), tuple(questions))
    except (TypeError, ValueError, LookupError):
        return None


def _pieces(value: Any, turns: int) -> Pieces:
    return tuple(each if isinstance(each, str) else _piece(each, turns) for each in value)


def _piece(value: Any, turns: int) -> Piece:
    turn, trims = value
    if turn not in range(turns):
        raise ValueError(turn)
    return Piece(turn, tuple((_one_of(_TRIMS, how), _characters(which)) for how, which in trims))


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


def _ends(piece: Piece) -> tuple[str | None, str | None]:
    """What is trimmed at both ends in the words of a Slot; None for what a Slot cannot say."""
    left, right = (
        {characters for name, characters in piece.trims if name == how}
        for how in ("lstrip", "rstrip")
    )
    return _trim(left), _trim(right)


def _trim(characters: set[str | None]) -> str | None:
    """Trimming lines before or after trimming all white space changes nothing."""
    if not characters:
        return KEEP
    if None in characters:
        return TRIM_ALL if characters <= {None, "\n"} else None
    return TRIM_LINES if characters == {"\n"} else None
