"""Columns that are not trained on although their name or content says that they belong to the rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from qlora_space.core.options import Format
from qlora_space.data.formats.choices import CHOICE_COLUMN
from qlora_space.data.formats.columns import outer_columns
from qlora_space.data.formats.detect import Detection
from qlora_space.data.formats.media import MEDIA_ID_COLUMN, is_media_column
from qlora_space.data.formats.rules import (
    ABOUT_A_ROW,
    ANSWERS,
    CHOICES,
    HISTORY_NAMES,
    LABELS,
    PARENT_NAMES,
    QUESTIONS,
    RULES,
)
from qlora_space.data.formats.turns import parse_turns
from qlora_space.data.formats.values import words_of
from qlora_space.data.rows import Row
from qlora_space.data.tokenize_rows import Tokenized, text_of_example

CONTEXT_NAMES = (
    *("context", "contexts", "passage", "passages", "documents", "docs", "evidence", "ctxs"),
    *("background", "knowledge", "facts", "retrieved_documents", "references", "input"),
)
JUDGEMENT_NAMES = (
    *("is_safe", "safe", "is_correct", "correct", "correctness", "is_valid", "is_good", "quality"),
    *("reward", "score", "rating", "is_accepted", "accepted", "passed", "verdict"),
)
_OF_PARTS = {part.name: part.columns for rule in RULES for part in rule.parts}
_ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("earlier turns", (*HISTORY_NAMES, "previous_messages", "previous_turns", "context_messages")),
    ("a system text", _OF_PARTS["system"]),
    ("tools", _OF_PARTS["tools"]),
    ("reasoning", (*_OF_PARTS["reasoning"], "scratchpad", "analysis")),
    ("a weight of the row", _OF_PARTS["weight"]),
    ("a label", LABELS),
    ("choices", CHOICES),
    ("what a question is about", CONTEXT_NAMES),
    ("a judgement of the answer", JUDGEMENT_NAMES),
    ("a question", QUESTIONS),
    ("an answer", ANSWERS),
)
_QUESTION_WORDS = frozenset(("question", "prompt", "instruction", "query"))
_ANSWER_WORDS = frozenset(("answer", "response", "completion", "reply"))
_TEXT_CHARS = 20
_NOWHERE = "\0"
_MOST_COMPARED = 200


def unread_columns(rows: Sequence[Tokenized], detection: Detection) -> Iterator[tuple[str, str]]:
    """Each column that is not read and not contained in what is, and what its name says that it holds.

    The role is '' for a text of no known name.
    """
    read = {name for column in detection.mapping.values() for name in outer_columns(column)}
    columns = dict.fromkeys(name for row in rows for name in row.row.values)
    for column in columns:
        if column in read:
            continue
        cells = [(row, row.row.values.get(column)) for row in rows]
        filled = [(row, cell) for row, cell in cells if cell not in (None, "", [], {})]
        if not filled or _is_contained(filled):
            continue
        values = [cell for _, cell in filled]
        if detection.format is not Format.TEXT and any(is_media_column(column, v) for v in values):
            continue  # these rows are left out already
        role = _role_of(column, values)
        if role is not None:
            yield column, role


def linked_column(rows: Sequence[Row]) -> str | None:
    """The column in which rows name an earlier row that they answer."""
    columns = {name.lower(): name for row in rows for name in row.values}
    for parent in (columns[name] for name in PARENT_NAMES if name in columns):
        if "role" in columns:  # each row is one message
            return parent
        named = {str(row.values[parent]) for row in rows if row.values.get(parent) is not None}
        others = [name for name in columns.values() if name != parent and "id" in name.lower()]
        if any(named & {str(row.values.get(other)) for row in rows} for other in others):
            return parent
    return None


def _is_contained(cells: Sequence[tuple[Tokenized, Any]]) -> bool:
    """Whether most of the cells are part of what is trained on, as a prompt beside whole conversations is."""
    usable = [(row, cell) for row, cell in cells[:_MOST_COMPARED] if row.example is not None]
    found = [
        all(text.strip() in text_of_example(row.example) for text in _texts_in(cell))
        for row, cell in usable
        if row.example is not None
    ]
    return bool(found) and 2 * sum(found) > len(found)


def _texts_in(cell: Any) -> list[str]:
    """A text, or those of a list of turns; one that nothing contains for anything else."""
    turns = parse_turns(cell)
    contents = [turn.get("content", turn.get("value")) for turn in turns] if turns else [cell]
    return [text if isinstance(text, str) else _NOWHERE for text in contents]


def _role_of(column: str, cells: Sequence[Any]) -> str | None:
    """'' for a long text, None for what may well be left out."""
    name = column.lower().strip()
    if MEDIA_ID_COLUMN.fullmatch(name) or any(is_media_column(column, cell) for cell in cells):
        return "images, audio or video"
    if all(map(parse_turns, cells)):
        return "a conversation"
    if CHOICE_COLUMN.fullmatch(name):
        return "a choice"
    if {str(cell).lower() for cell in cells} == {"true", "false"}:
        return "a judgement of the answer"
    words = words_of(column)
    if ABOUT_A_ROW.search(column) and name not in JUDGEMENT_NAMES:
        return None
    for role, names in _ROLES:
        if name in names:
            return role
    texts = [cell for cell in cells if isinstance(cell, str)]
    if texts and (words & _QUESTION_WORDS or words & _ANSWER_WORDS):
        return "a question" if words & _QUESTION_WORDS else "an answer"
    is_long = bool(texts) and sum(map(len, texts)) > _TEXT_CHARS * len(cells)
    return "" if is_long and len(set(texts)) > len(texts) // 2 else None
