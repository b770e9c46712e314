"""Rows of text files: JSON lines, JSON, CSV, plain text. At most one row is in memory."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any

from qlora_space.core.errors import DatasetError
from qlora_space.data.reading.json_array import iterate_json_array
from qlora_space.data.reading.streams import (
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    DataFile,
    too_long,
    too_many_columns,
)
from qlora_space.data.rows import Row, RowProblem, is_utf8

# A JSON object that holds all rows has to be in memory as a whole.
_MAX_OBJECT_CHARS = 32 * 2**20
# Each may be a Python object of 64 bytes.
_MAX_OBJECT_VALUES = 2_000_000
# Messages with tool calls need about ten levels; code that walks a row recurses once a level.
_MAX_DEPTH = 64
_PARAGRAPH_PROBE_CHARS = 2**20


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


def read_jsonl(file: DataFile, text: IO[str]) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(_lines(file, text), start=1):
        if not line.strip():
            continue
        number += 1
        location = f"{file.name}, line {line_number}"
        if not is_utf8(line):
            yield Row(number, location, {}, _not_utf8(location))
        else:
            yield _json_row(number, location, _parse_json(line, location), "\\u" in line)


def _json_row(number: int, location: str, value: Any, may_be_escaped: bool = True) -> Row:
    """Refuses half surrogate pairs: they can be written in ASCII, and no tokenizer takes them."""
    row = row_of(number, location, value)
    # repr() writes a half pair as an escape, always in lower case.
    is_suspect = may_be_escaped and "\\ud" in repr(row.values)
    if is_suspect and not is_utf8(json.dumps(row.values, ensure_ascii=False)):
        return Row(number, location, {}, _not_utf8(location))
    return row


def _parse_json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{location} is not valid JSON: {error.msg} at column {error.colno}.",
            "Correct the line or take it out.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{location} holds JSON that is nested too deeply or a number that is too long.",
            "Take the line out.",
        ) from error


def read_json(file: DataFile, text: IO[str]) -> Iterator[Row]:
    """An array of objects, one object a line, or one object that holds the rows."""
    start = _first_char(text)
    text.seek(0)
    if start == "[":
        for number, value in enumerate(iterate_json_array(text, file.name), start=1):
            yield _json_row(number, f"{file.name}, row {number}", value)
        return
    is_lines = _is_json_object(_next_line(text)) and bool(_next_line(text))
    text.seek(0)
    yield from read_jsonl(file, text) if is_lines else _one_object(file, text)


def _next_line(text: IO[str]) -> str:
    """The next that is not blank; '' at the end."""
    while (line := text.readline(MAX_ROW_BYTES)) and not line.strip():
        pass
    return line


def _one_object(file: DataFile, text: IO[str]) -> Iterator[Row]:
    content = text.read(_MAX_OBJECT_CHARS + 1)
    if len(content) > _MAX_OBJECT_CHARS or sum(map(content.count, ",[{")) > _MAX_OBJECT_VALUES:
        raise DatasetError(
            f"{file.name} is one JSON object that is too large to be read as a whole.",
            "Write one row a line and call it .jsonl.",
        )
    if not is_utf8(content):
        raise DatasetError(f"{file.name} is not valid UTF-8.", "Save it as UTF-8 and try again.")
    rows = _rows_in_object(_parse_json(content.lstrip("\ufeff"), file.name))
    for number, value in enumerate(rows, start=1):
        yield _json_row(number, f"{file.name}, row {number}", value)


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


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line.lstrip("\ufeff")), dict)
    except (ValueError, RecursionError):
        return False


def read_csv(file: DataFile, text: IO[str]) -> Iterator[Row]:
    """Separated by tabs in a .tsv; in a .csv by what occurs most often in the first line."""
    csv.field_size_limit(MAX_ROW_BYTES)
    header_line = next(_lines(file, text), "")
    text.seek(0)
    is_tsv = ".tsv" in file.name.lower()
    lines = _CsvLines(file, text)
    reader = csv.reader(lines, delimiter="\t" if is_tsv else _delimiter(header_line), strict=True)
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
            lines.row_chars = 0
            if not cells:
                continue
            if not header:
                header = _header(file, cells)
                continue
            number += 1
            yield _csv_row(number, f"{file.name}, line {reader.line_num}", header, cells)
    except csv.Error as error:
        raise DatasetError(
            f"{file.name}, line {reader.line_num} is not valid CSV: {error}.",
            "Check the quotes on that line.",
        ) from error


class _CsvLines:
    """Lines for the csv module; a quote that is never closed must not read the whole file."""

    def __init__(self, file: DataFile, text: IO[str]) -> None:
        self._file, self._lines = file, enumerate(_lines(file, text), start=1)
        self.row_chars = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.row_chars += len(line)
        if self.row_chars > MAX_ROW_BYTES:
            raise too_long(f"{self._file.name}: the row that ends on line {number}")
        return line


def _delimiter(header_line: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", header_line)
    return max(",;\t|", key=outside_quotes.count)


def _header(file: DataFile, cells: list[str]) -> list[str]:
    if len(cells) > MAX_COLUMNS:
        raise too_many_columns(f"{file.name}, line 1", len(cells))
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DatasetError(
            f"{file.name}, line 1 names the column {repeated[:80]!r} twice.", "Rename one of them."
        )
    return names


def _csv_row(number: int, location: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        message = f"{location} has {len(cells)} cells, the header has {len(header)}."
        return Row(number, location, {}, RowProblem("bad_row", message))
    if not is_utf8("".join(cells)):
        return Row(number, location, {}, _not_utf8(location))
    return Row(number, location, dict(zip(header, cells, strict=True)))


def read_txt(file: DataFile, text: IO[str]) -> Iterator[Row]:
    """Paragraphs if blank lines separate them, else lines."""
    probe = text.read(_PARAGRAPH_PROBE_CHARS).strip()
    text.seek(0)
    has_paragraphs = re.search(r"\S[^\S\n]*\r?\n[^\S\n]*\r?\n", probe) is not None
    lines = enumerate(_lines(file, text), start=1)
    number = 0
    for line_number, content in _paragraphs(file, lines) if has_paragraphs else lines:
        if content.strip():
            number += 1
            yield _text_row(number, file, line_number, content)


def _paragraphs(file: DataFile, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    first, block, size = 0, [], 0
    for line_number, line in lines:
        if line.strip():
            first = first if block else line_number
            block.append(line)
            size += len(line)
            if size > MAX_ROW_BYTES:
                raise too_long(f"{file.name}: the paragraph from line {first} on")
        elif block:
            yield first, "".join(block)
            block, size = [], 0
    yield first, "".join(block)


def _text_row(number: int, file: DataFile, line_number: int, content: str) -> Row:
    location = f"{file.name}, line {line_number}"
    if not is_utf8(content):
        return Row(number, location, {}, _not_utf8(location))
    return Row(number, location, {"text": content.strip("\r\n")})


def _lines(file: DataFile, text: IO[str]) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_ROW_BYTES):
        number += 1
        if len(line) == MAX_ROW_BYTES:
            raise too_long(f"{file.name}, line {number}")
        yield line


def _first_char(text: IO[str]) -> str:
    while char := text.read(1):
        if not char.isspace() and char != "\ufeff":
            return char
    return ""


def _not_utf8(location: str) -> RowProblem:
    return RowProblem("not_utf8", f"{location} is not valid UTF-8.")
