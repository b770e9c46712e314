"""The plain values of this layer: a row as read, the example made of it, what is wrong with it."""

from dataclasses import dataclass
from typing import Any

from qlora_space.data.messages import Example, Message, Role

__all__ = ["Example", "Message", "Role", "Row", "RowProblem", "is_utf8"]


@dataclass(frozen=True)
class RowProblem:
    """Why one row cannot be used. `code` is stable, `message` is a sentence for a person."""

    code: str
    message: str


@dataclass(frozen=True)
class Row:
    """One row of a source. `place` is where a person finds it, e.g. 'train.jsonl, line 7'."""

    number: int
    place: str
    values: dict[str, Any]
    problem: RowProblem | None = None


def is_utf8(text: str) -> bool:
    """False for bytes that were not UTF-8, and for half surrogate pairs that no tokenizer takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
