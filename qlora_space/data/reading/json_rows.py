"""Rows of JSON files, however they are laid out: one row a line, an array, objects one after the other, or
one object that holds the rows. At most one row is in memory, but for the last of these."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, Any, Literal

from qlora_space.core.errors import DatasetError
from qlora_space.data.formats.literals import is_literal_like, parse_literal
from qlora_space.data.reading.json_values import iterate_json_values
from qlora_space.data.reading.streams import (
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    DataFile,
    located_lines,
    too_many_columns,
)
from qlora_space.data.rows import Row, RowProblem, is_utf8, not_utf8

# A JSON object that holds all rows has to be in memory as a whole.
_MAX_OBJECT_CHARS = 32 * 2**20
# Each may be a Python object of 64 bytes.
_MAX_OBJECT_VALUES = 2_000_000
# Enough to see that one value is followed by another; parsing a longer one twice would take seconds.
_PROBE_CHARS = 2**20
# Messages with tool calls need about ten levels; code that walks a row recurses once a level.
_MAX_DEPTH = 64

Layout = Literal["lines", "values", "object"]


def row_of(number: int, location: str, value: Any) -> Row:
    """A row of parsed JSON. Raises DatasetError for too many columns or levels."""
    if isinstance(value, list) and _is_conversation(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        message = f"{location} is a {type(value).__name__}, not an object with columns."
        return Row(number, location, {}, RowProblem("bad_row", message))
    if not value:
        return Row(number, location, {}, RowProblem("bad_row", f"{location} has no columns."))
    if len(value) > MAX_COLUMNS:
        raise too_many_columns(location, len(value))
    if _is_deep(value, _MAX_DEPTH):
        raise DatasetError(f"{location} is nested too deeply.", "Take the row out.")
    return Row(number, location, value)


def _is_deep(value: Any, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    parts = [part for part in inner if isinstance(part, dict | list)]
    return bool(parts) and (left == 0 or any(_is_deep(part, left - 1) for part in parts))


def json_layout(file: DataFile, text: IO[str]) -> Layout:
    """How the rows are laid out, from the beginning of `text`, which is at its start again afterwards."""
    first = _next_line(text)
    has_second = len(first) < MAX_ROW_BYTES and bool(_next_line(text))
    text.seek(0)
    value = _value_of(first)
    is_named_lines = file.kind != "json"
    if isinstance(value, list):
        are_rows = not _is_conversation(value) or not (is_named_lines or has_second)
        return "values" if are_rows else "lines"
    if value is not _INCOMPLETE:
        return "lines" if is_named_lines or has_second else "object"
    if is_named_lines and len(first) == MAX_ROW_BYTES and first.lstrip()[:1] != "[":
        return "lines"  # reading it says that it is too long
    if first.lstrip("\ufeff \t")[:1] == "[":
        return "values"
    if is_named_lines and _python_value(first) is not _INCOMPLETE:
        return "lines"
    return _layout_of_values(file, text)


_INCOMPLETE = object()


def _value_of(line: str) -> Any:
    """The JSON value that a line is; _INCOMPLETE if it is none."""
    if len(line) == MAX_ROW_BYTES:
        return _INCOMPLETE
    try:
        return json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return _INCOMPLETE


def _next_line(text: IO[str]) -> str:
    """The next that is not blank; '' at the end."""
    while (line := text.readline(MAX_ROW_BYTES)) and not line.strip("\ufeff \t\r\n"):
        pass
    return line


def _layout_of_values(file: DataFile, text: IO[str]) -> Layout:
    """Of rows that are longer than a line."""
    values = iterate_json_values(text, file.name, _PROBE_CHARS)
    try:
        next(values, None)
    except DatasetError:  # whoever reads it as it should be says what is wrong
        return "object" if file.kind == "json" else "lines"
    else:
        return "values" if _has_more(values) else "object"
    finally:
        text.seek(0)


def _has_more(values: Iterator[Any]) -> bool:
    try:
        return next(values, _INCOMPLETE) is not _INCOMPLETE
    except DatasetError:
        return True


def read_json(file: DataFile, text: IO[str]) -> Iterator[Row]:
    """Rows of a .json or .jsonl file, in whichever layout they are."""
    match json_layout(file, text):
        case "lines":
            yield from _read_lines(file, text)
        case "values":
            yield from _read_values(file, text)
        case "object":
            yield from _one_object(file, text)


def _read_values(file: DataFile, text: IO[str]) -> Iterator[Row]:
    for number, value in enumerate(iterate_json_values(text, file.name), start=1):
        yield _json_row(number, f"{file.name}, row {number}", value)


def _read_lines(file: DataFile, text: IO[str]) -> Iterator[Row]:
    for number, location, line in located_lines(file, text):
        if not is_utf8(line):
            yield Row(number, location, {}, not_utf8(location, line))
        else:
            yield _json_row(number, location, _parse_line(line, location), "\\u" in line)


def _json_row(number: int, location: str, value: Any, may_be_escaped: bool = True) -> Row:
    """Refuses half surrogate pairs: they can be written in ASCII, and no tokenizer takes them."""
    row = row_of(number, location, value)
    # repr() writes a half pair as an escape, always in lower case.
    is_suspect = may_be_escaped and "\\ud" in repr(row.values)
    if is_suspect and not is_utf8(json.dumps(row.values, ensure_ascii=False, default=str)):
        return Row(number, location, {}, not_utf8(location))
    return row


def _parse_line(line: str, location: str) -> Any:
    """JSON, or the literal that Python prints for the same: {'text': None}."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        value = _python_value(line)
        if value is _INCOMPLETE:
            raise _not_json(error, f"{location} is not valid JSON", line) from error
        return value
    except (ValueError, RecursionError) as error:
        raise _too_deep(location) from error


def _python_value(line: str) -> Any:
    """Of a list or an object in Python's notation; _INCOMPLETE if it is none or too large."""
    try:
        return parse_literal(line) if is_literal_like(line) else _INCOMPLETE
    except ValueError:
        return _INCOMPLETE


def _not_json(error: json.JSONDecodeError, what: str, text: str) -> DatasetError:
    if "property name" in error.msg and text[error.pos : error.pos + 1] == "'":
        return DatasetError(
            f"{what}: it is Python's notation, with ' for \".",
            "Write each row with json.dumps.",
        )
    return DatasetError(
        f"{what}: {error.msg} at column {error.colno}.", "Correct the line or take it out."
    )


def _too_deep(location: str) -> DatasetError:
    return DatasetError(
        f"{location} holds JSON that is nested too deeply or a number that is too long.",
        "Take the line out.",
    )


def _one_object(file: DataFile, text: IO[str]) -> Iterator[Row]:
    content = text.read(_MAX_OBJECT_CHARS + 1)
    if len(content) > _MAX_OBJECT_CHARS or sum(map(content.count, ",[{")) > _MAX_OBJECT_VALUES:
        raise DatasetError(
            f"{file.name} is one JSON object that is too large to be read as a whole.",
            "Write one row a line and call it .jsonl.",
        )
    if not is_utf8(content):
        raise DatasetError(f"{file.name} is not valid UTF-8.", "Save it as UTF-8 and try again.")
    if not content.strip("\ufeff \t\r\n"):
        return
    value = _parse_object(file, content)
    if value is _INCOMPLETE:
        text.seek(0)
        yield from _read_values(file, text)
        return
    for number, row in enumerate(_rows_in_object(value), start=1):
        yield _json_row(number, f"{file.name}, row {number}", row)


def _parse_object(file: DataFile, content: str) -> Any:
    """_INCOMPLETE if more values follow the first."""
    try:
        return json.loads(content.lstrip("\ufeff"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _INCOMPLETE
        location = f"{file.name}, line {error.lineno}"
        raise _not_json(error, f"{location} is not valid JSON", content) from error
    except (ValueError, RecursionError) as error:
        raise _too_deep(file.name) from error


def _rows_in_object(value: Any) -> Iterable[Any]:
    """{'data': [rows]} or {'column': [values], ...}; anything else is one row."""
    if not isinstance(value, dict):
        return [value]
    tables = {
        name: inner
        for name, inner in value.items()
        if isinstance(inner, list) and inner and isinstance(inner[0], dict)
    }
    table = tables.get("train") or (next(iter(tables.values())) if len(tables) == 1 else None)
    if table and not _is_conversation(table):
        return table
    if any(map(_is_conversation, tables.values())):
        return [value]
    if _is_table_of_objects(value):
        first = next(iter(value.values()))
        if all(key.isdecimal() for key in first):  # {'column': {'0': value, ...}, ...}, as pandas
            return [{name: column[at] for name, column in value.items()} for at in first]
        return list(value.values())
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if lists and len(lists) == len(value) and len({len(inner) for inner in lists}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return [value]


def _is_conversation(values: list[Any]) -> bool:
    first = values[0] if values else None
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _is_table_of_objects(value: dict[str, Any]) -> bool:
    """Several objects that all have the same keys."""
    inner = list(value.values())
    are_objects = len(inner) > 1 and all(isinstance(each, dict) and each for each in inner)
    return are_objects and all(each.keys() == inner[0].keys() for each in inner)
