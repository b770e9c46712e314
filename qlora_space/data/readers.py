"""Reads local files row by row in bounded memory. `KINDS` says which."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from qlora_space.data.json_array import iterate_json_array
from qlora_space.data.rows import Row, RowProblem
from qlora_space.errors import DatasetError

TEXT_KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt")
KINDS = (*TEXT_KINDS, "parquet", "arrow")
_MAX_LINE_BYTES = 64 * 2**20
_ROWS_AT_ONCE = 256
_PARAGRAPH_PROBE_CHARS = 2**20
_SAVE_AS = "Save it as UTF-8 and try again."


def kind_of(file: Path) -> str:
    """'jsonl' for train.jsonl and train.jsonl.gz, '' for a name that is not read."""
    suffixes = [suffix.lower().lstrip(".") for suffix in file.suffixes[-2:]]
    if suffixes[-1:] == ["gz"]:
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] in TEXT_KINDS else ""
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def read_rows(file: Path) -> Iterator[Row]:
    """Rows of one file. Raises DatasetError naming file and line for what cannot be read."""
    kind = kind_of(file)
    try:
        if kind in ("parquet", "arrow"):
            yield from _numbered(file, _arrow_values(file, kind))
        else:
            with _open_text(file) as text:
                yield from _READERS[kind](file, text)
    except (pa.ArrowException, EOFError, OSError, zlib.error) as error:
        raise DatasetError(
            f"{file.name} cannot be read: {_first_line(error)}.", "Check that the file is whole."
        ) from error


def count_rows(file: Path) -> int:
    """Exact number of rows; from the footer of a Parquet file, else by reading."""
    kind = kind_of(file)
    if kind == "parquet":
        try:
            return pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{file.name} cannot be read: {_first_line(error)}.",
                "Check that the file is whole.",
            ) from error
    if kind in ("jsonl", "ndjson"):
        with _open_bytes(file) as lines:
            return sum(1 for line in lines if not line.isspace())
    return sum(1 for _ in read_rows(file))


def _open_bytes(file: Path) -> IO[bytes]:
    is_packed = file.suffix.lower() == ".gz"
    return cast(IO[bytes], gzip.GzipFile(file)) if is_packed else file.open("rb")


def _open_text(file: Path) -> IO[str]:
    """Undecodable bytes become lone surrogates, so that the row that has them can be named."""
    opened = _open_bytes(file)
    start = opened.read(4)
    opened.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start[1:2] == b"\0":
        opened.close()
        raise DatasetError(f"{file.name} is not UTF-8 text (it looks like UTF-16).", _SAVE_AS)
    return io.TextIOWrapper(opened, "utf-8-sig", errors="surrogateescape", newline="")


def _numbered(file: Path, values: Iterable[Any], what: str = "row") -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield _row(number, f"{file.name}, {what} {number}", value)


def _row(number: int, place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        message = f"{place} is a {type(value).__name__}, not an object with columns."
        return Row(number, place, {}, RowProblem("bad_row", message))
    return Row(number, place, value)


def _jsonl(file: Path, text: IO[str]) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(_lines(file, text), start=1):
        if not line.strip():
            continue
        number += 1
        place = f"{file.name}, line {line_number}"
        if not _is_utf8(line):
            yield Row(number, place, {}, _not_utf8(place))
        else:
            yield _row(number, place, _parse_json(line, place))


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{place} is not valid JSON: {error.msg} at column {error.colno}.",
            "Correct the line or take it out.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{place} holds JSON that is nested too deeply or a number that is too long.",
            "Take the line out.",
        ) from error


def _json(file: Path, text: IO[str]) -> Iterator[Row]:
    """An array of objects, one object a line, or one object that holds the rows."""
    start = _first_char(text)
    text.seek(0)
    if start == "[":
        for number, value in enumerate(iterate_json_array(text, file.name), start=1):
            place = f"{file.name}, row {number}"
            yield (
                _row(number, place, value)
                if _is_utf8(str(value))
                else Row(number, place, {}, _not_utf8(place))
            )
        return
    first = next((line for line in _lines(file, text) if line.strip()), "")
    text.seek(0)
    if _is_json_object(first):
        yield from _jsonl(file, text)
        return
    content = text.read(_MAX_LINE_BYTES)
    yield from _numbered(file, _rows_in_object(_parse_json(content.lstrip("\ufeff"), file.name)))


def _rows_in_object(value: Any) -> Iterable[Any]:
    """{'data': [rows]} or {'column': [values], ...}; anything else is one row."""
    if not isinstance(value, dict):
        return [value]
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    tables = [inner for inner in lists if inner and isinstance(inner[0], dict)]
    if len(tables) == 1 and not _is_conversation(tables[0]):
        return tables[0]
    if len(lists) == len(value) and len({len(inner) for inner in lists}) == 1 and not tables:
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return [value]


def _is_conversation(values: list[dict[str, Any]]) -> bool:
    return "role" in values[0] or "from" in values[0]


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line.lstrip("\ufeff")), dict)
    except (ValueError, RecursionError):
        return False


def _csv(file: Path, text: IO[str]) -> Iterator[Row]:
    csv.field_size_limit(_MAX_LINE_BYTES)
    header_line = text.readline()
    text.seek(0)
    delimiter = "\t" if kind_of(file) == "tsv" else _delimiter(header_line)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    try:
        for cells in reader:
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


def _delimiter(header_line: str) -> str:
    outside_quotes = re.sub(r'"[^"]*"', "", header_line)
    return max(",;\t|", key=outside_quotes.count)


def _header(file: Path, cells: list[str]) -> list[str]:
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(
            f"{file.name}, line 1 names the column {repeated[:80]!r} twice.", "Rename one of them."
        )
    return names


def _csv_row(number: int, place: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        message = f"{place} has {len(cells)} cells, the header has {len(header)}."
        return Row(number, place, {}, RowProblem("bad_row", message))
    if not all(_is_utf8(cell) for cell in cells):
        return Row(number, place, {}, _not_utf8(place))
    return Row(number, place, dict(zip(header, cells, strict=True)))


def _txt(file: Path, text: IO[str]) -> Iterator[Row]:
    """Paragraphs where blank lines part them, else lines."""
    probe = text.read(_PARAGRAPH_PROBE_CHARS).strip()
    text.seek(0)
    has_paragraphs = re.search(r"\S[^\S\n]*\r?\n[^\S\n]*\r?\n", probe) is not None
    lines = enumerate(_lines(file, text), start=1)
    number = 0
    for line_number, content in _paragraphs(lines) if has_paragraphs else lines:
        if content.strip():
            number += 1
            yield _text_row(number, file, line_number, content)


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    first, block = 0, ""
    for line_number, line in lines:
        if line.strip():
            first = first if block else line_number
            block += line
        elif block:
            yield first, block
            block = ""
    yield first, block


def _text_row(number: int, file: Path, line_number: int, content: str) -> Row:
    place = f"{file.name}, line {line_number}"
    if not _is_utf8(content):
        return Row(number, place, {}, _not_utf8(place))
    return Row(number, place, {"text": content.strip("\r\n")})


def _lines(file: Path, text: IO[str]) -> Iterator[str]:
    while line := text.readline(_MAX_LINE_BYTES):
        if len(line) == _MAX_LINE_BYTES:
            raise DatasetError(
                f"{file.name} has a line longer than {_MAX_LINE_BYTES // 2**20} MiB.",
                "Put one row on a line.",
            )
        yield line


def _arrow_values(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    if kind == "parquet":
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
        return
    with pa.memory_map(str(file)) as source:
        for batch in _arrow_batches(source):
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield from batch.slice(start, _ROWS_AT_ONCE).to_pylist()


def _arrow_batches(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    """Both Arrow layouts: a stream (what `datasets` writes) and a file with a footer (Feather)."""
    if source.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        return
    source.seek(0)
    yield from pa.ipc.open_stream(source)


def _first_char(text: IO[str]) -> str:
    while char := text.read(1):
        if not char.isspace() and char != "\ufeff":
            return char
    return ""


def _is_utf8(text: str) -> bool:
    """False for bytes that were not UTF-8, and for half surrogate pairs that no tokenizer takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(place: str) -> RowProblem:
    return RowProblem("not_utf8", f"{place} is not valid UTF-8.")


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200].rstrip(".") if text else type(error).__name__


_READERS = {
    "jsonl": _jsonl,
    "ndjson": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _csv,
    "txt": _txt,
}
