"""Rows of CSV and TSV files. At most one row is in memory."""

import csv
import itertools
import re
from collections.abc import Iterator
from typing import IO

from qlora_space.core.errors import DatasetError
from qlora_space.data.reading.header import column_names, is_header
from qlora_space.data.reading.streams import MAX_ROW_BYTES, DataFile, lines_of, too_long
from qlora_space.data.rows import Row, RowProblem, is_utf8, not_utf8

_ROWS_TO_COMPARE = 50
# Excel's own first line, which says what separates the cells.
_SEPARATOR_LINE = re.compile(r'\ufeff?"?sep=(.)"?\s*', re.IGNORECASE)


def read_csv(file: DataFile, text: IO[str]) -> Iterator[Row]:
    """Rows by column. Without a header the columns are column_1, column_2, ..."""
    csv.field_size_limit(MAX_ROW_BYTES)
    records = _records(file, text)
    first = _peeked(records)
    if not first:
        return
    header = first[0][1] if _has_header(first) else None
    names = column_names(header, len(first[0][1]), f"{file.name}, line {first[0][0]}")
    rows = itertools.chain(first[1:] if header else first, records)
    for number, (line, cells) in enumerate(rows, start=1):
        location = f"{file.name}, line {line}"
        if header is not None and cells == header:
            problem = RowProblem("bad_row", f"{location} repeats the header.")
            yield Row(number, location, {}, problem)
        else:
            yield _row(number, location, names, cells)


def has_header(file: DataFile, text: IO[str]) -> bool:
    """Whether the first row names the columns; True for a file without rows."""
    csv.field_size_limit(MAX_ROW_BYTES)
    first = _peeked(_records(file, text))
    return not first or _has_header(first)


Record = tuple[int, list[str]]
"""The line that a row ends on, and its cells."""


def _has_header(first: list[Record]) -> bool:
    return is_header(first[0][1], [cells for _, cells in first[1:]])


def _peeked(records: Iterator[Record]) -> list[Record]:
    """The first few, and no more of them than a row may be long."""
    first: list[Record] = []
    chars = 0
    for line, cells in records:
        first.append((line, cells))
        chars += sum(map(len, cells))
        if len(first) > _ROWS_TO_COMPARE or chars > MAX_ROW_BYTES:
            break
    return first


def _records(file: DataFile, text: IO[str]) -> Iterator[Record]:
    """Separated by tabs in a .tsv; in a .csv by what the first line says or has most often."""
    first_line = next(lines_of(file, text), "")
    text.seek(0)
    lines = _Lines(file, text)
    said = _SEPARATOR_LINE.fullmatch(first_line)
    if said:
        next(lines)
    delimiter = "\t" if file.kind == "tsv" else said[1] if said else _delimiter(first_line)
    try:
        for cells in csv.reader(lines, delimiter=delimiter, strict=True):
            lines.row_chars = 0
            if cells:
                yield lines.number, cells
    except csv.Error as error:
        raise DatasetError(
            f"{file.name}, line {lines.number} is not valid CSV: {error}.",
            "Check the quotes on that line.",
        ) from error


class _Lines:
    """Lines for the csv module; a quote that is never closed must not read the whole file."""

    def __init__(self, file: DataFile, text: IO[str]) -> None:
        self._file, self._lines = file, lines_of(file, text)
        self.number = self.row_chars = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self.row_chars += len(line)
        if self.row_chars > MAX_ROW_BYTES:
            raise too_long(f"{self._file.name}: the row that ends on line {self.number}")
        return line


def _delimiter(first_line: str) -> str:
    """What occurs most often outside quotes."""
    outside_quotes = re.sub(r'"[^"]*"', "", first_line)
    return max(",;\t|", key=outside_quotes.count)


def _row(number: int, location: str, names: list[str], cells: list[str]) -> Row:
    if len(cells) != len(names):
        message = f"{location} has {len(cells)} cells, the header has {len(names)}."
        return Row(number, location, {}, RowProblem("bad_row", message))
    if not is_utf8("".join(cells)):
        return Row(number, location, {}, not_utf8(location, ",".join(cells)))
    return Row(number, location, dict(zip(names, cells, strict=True)))
