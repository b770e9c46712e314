"""Rows that are single messages, each naming the one that it answers, joined into the conversations that they are.

As OASST has them: message_id, parent_id, role, text. A conversation is the way from a first message to a last one.
Where ways part, what they share is learned once, with the first of them; in the others it is context.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data.formats.rules import PARENT_NAMES
from qlora_space.data.formats.turns import is_answer
from qlora_space.data.rows import Row, RowProblem, Source

_IDS = ("message_id", "id", "msg_id", "uuid")
_TEXTS = ("text", "content", "message", "body")
_MOST_BYTES = 64 * 2**20  # all of it is read to know that no message is missing
_MOST_MESSAGES = 2000  # of one tree: a way for each of them may be as long
_COLUMN = "messages"


@dataclass(frozen=True)
class _Names:
    """The columns, as the dataset spells them."""

    id: str
    parent: str
    role: str
    text: str


def with_trees_joined(
    source: Source, format: Format | None, columns: Mapping[str, str] | None
) -> Source:
    """Conversations if the source holds whole trees of messages; else, or where the user chose to have each message
    alone, the source as it is. `format` and `columns`: what was chosen for its rows."""
    chosen = {column for column in (columns or {}).values() if column}
    if format not in (None, Format.MESSAGES) or not chosen <= {_COLUMN}:
        return source
    names = _names(source.columns) if 0 < source.num_bytes <= _MOST_BYTES else None
    if names is None:
        return source
    try:
        count = _count(source.rows(), names)
    except DatasetError:  # reported by whoever reads that far
        return source
    if count is None:
        return source
    note = RowProblem(
        "joined_messages", f"The messages are joined into conversations by “{names.parent}”."
    )
    return replace(
        source,
        read=lambda: _joined(source.rows(), names),
        count=lambda: count,
        note=lambda: (*source.note(), note),
    )


def _names(columns: Iterable[str]) -> _Names | None:
    by_lower = {name.lower().strip(): name for name in reversed(list(columns))}
    wanted = (_IDS, PARENT_NAMES, ("role",), _TEXTS)
    found = [next((by_lower[n] for n in names if n in by_lower), None) for names in wanted]
    id, parent, role, text = found
    return _Names(id, parent, role, text) if id and parent and role and text else None


def _count(rows: Iterator[Row], names: _Names) -> int | None:
    """Number of conversations; None if a message is missing, unreadable, or stands apart from its tree."""
    count, has_branches = 0, False
    for tree in _trees(rows, names):
        known = {str(row.values[names.id]) for row in tree}
        is_whole = all(
            row.problem is None and (row is tree[0] or _parent(row, names) in known) for row in tree
        )
        is_whole = is_whole and _parent(tree[0], names) == "" and len(known) == len(tree)
        if not is_whole or len(tree) > _MOST_MESSAGES:
            return None
        has_branches = has_branches or len(tree) > 1
        count += sum(1 for _ in _conversations(tree, names))
    return count if count and has_branches else None


def _trees(rows: Iterator[Row], names: _Names) -> Iterator[list[Row]]:
    """Each begins with a message that answers none. A longer one than is joined ends early, and is not whole."""
    tree: list[Row] = []
    for row in rows:
        if tree and (_parent(row, names) == "" or len(tree) > _MOST_MESSAGES):
            yield tree
            tree = []
        if names.id not in row.values:
            row = replace(row, values={names.id: ""}, problem=row.problem or _NO_ID)
        tree.append(row)
    if tree:
        yield tree


_NO_ID = RowProblem("bad_row", "A message has no id.")


def _parent(row: Row, names: _Names) -> str:
    parent = row.values.get(names.parent)
    return "" if parent is None else str(parent)


def _joined(rows: Iterator[Row], names: _Names) -> Iterator[Row]:
    number = 0
    for tree in _trees(rows, names):
        for location, messages in _conversations(tree, names):
            number += 1
            yield Row(number, location, {_COLUMN: messages})


def _conversations(tree: list[Row], names: _Names) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where each ends, and its turns. A way without an answer of its own is none."""
    by_id = {str(row.values[names.id]): row for row in tree}
    answered = {_parent(row, names) for row in tree}
    learned: set[str] = set()
    for last in tree:
        if str(last.values[names.id]) in answered:
            continue
        way = list(_way_to(last, by_id, names))[::-1]
        answers = {str(row.values[names.id]) for row in way if is_answer(_turn(row, names))}
        if answers - learned:
            yield last.location, [_turn(row, names, learned) for row in way]
            learned |= answers


def _way_to(last: Row, by_id: Mapping[str, Row], names: _Names) -> Iterator[Row]:
    """From the last message to the first; ids that go round in a circle end it."""
    seen: set[str] = set()
    at: Row | None = last
    while at is not None and (name := str(at.values[names.id])) not in seen:
        seen.add(name)
        yield at
        at = by_id.get(_parent(at, names))


def _turn(row: Row, names: _Names, learned: Iterable[str] = ()) -> dict[str, Any]:
    turn = {"role": row.values.get(names.role), "content": row.values.get(names.text)}
    return turn | (
        {"weight": 0} if str(row.values[names.id]) in learned and is_answer(turn) else {}
    )
