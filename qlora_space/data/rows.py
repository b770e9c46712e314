"""The plain values of this layer: a row as read, the example made of it, what is wrong with it."""

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


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


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Example = tuple[Message, ...] | str
"""A conversation that ends in an answer, or a plain text."""
