"""Columns by name or by path: in {"body": {"messages": [...]}} the conversation is "body.messages".

"A + B" is both columns as one object, {"A": ..., "B": ...}.
"""

from collections.abc import Iterator, Mapping
from typing import Any

JOINED = " + "
_SEPARATOR = "."
_MOST_LEVELS = 3


def value_at(values: Mapping[str, Any], column: str) -> Any:
    """The cell of a column; None where the row has none."""
    if column not in values and JOINED in column:
        return {name: value_at(values, name) for name in column.split(JOINED)}
    if column in values or _SEPARATOR not in column:
        return values.get(column)
    name, _, rest = column.partition(_SEPARATOR)
    inner = values.get(name)
    return value_at(inner, rest) if isinstance(inner, Mapping) else None


def has_column(values: Mapping[str, Any], column: str) -> bool:
    if column in values:
        return True
    if JOINED in column:
        return all(has_column(values, name) for name in column.split(JOINED))
    name, _, rest = column.partition(_SEPARATOR)
    inner = values.get(name)
    return bool(rest) and isinstance(inner, Mapping) and has_column(inner, rest)


def outer_columns(column: str) -> set[str]:
    """The columns of a row that a name reads, for each of the ways to write it."""
    return {column, *(name.partition(_SEPARATOR)[0] for name in column.split(JOINED))}


def inner_paths(column: str, cell: Any, levels: int = _MOST_LEVELS) -> Iterator[str]:
    """The paths of the values in an object, the outer ones first."""
    if levels == 0 or not isinstance(cell, Mapping):
        return
    for key in cell:
        yield f"{column}{_SEPARATOR}{key}"
    for key, inner in cell.items():
        yield from inner_paths(f"{column}{_SEPARATOR}{key}", inner, levels - 1)
