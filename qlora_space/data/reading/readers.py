"""Reads data files row by row in bounded memory, whatever they hold. `KINDS` says which."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from qlora_space.core.errors import DatasetError, first_line
from qlora_space.data.reading.streams import PACKED, UNREADABLE, DataFile, open_bytes, open_text
from qlora_space.data.reading.table_rows import count_parquet_rows, read_arrow, read_parquet
from qlora_space.data.reading.text_rows import read_csv, read_json, read_jsonl, read_txt
from qlora_space.data.rows import Row

TEXT_KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt")
KINDS = (*TEXT_KINDS, "parquet", "arrow")
READABLE = (
    f"{', '.join(KINDS)} (and {', '.join('.' + p for p in PACKED)} of {', '.join(TEXT_KINDS)})"
)
# More takes longer to count than a person waits: then the number is estimated.
_MAX_LINES_BYTES = 4 * 2**30
_MAX_PARSED_BYTES = 64 * 2**20
_MAX_PACKED_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20
_READERS = {
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "txt": read_txt,
}
_TABLES = {"parquet": read_parquet, "arrow": read_arrow}


def kind_of(name: str) -> str:
    """'jsonl' for train.jsonl and train.jsonl.gz, '' for a name that is not read."""
    suffixes = name.rpartition("/")[2].lower().split(".")[1:]
    if suffixes[-1:] and suffixes[-1] in PACKED:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_KINDS else ""
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def read_rows(file: DataFile) -> Iterator[Row]:
    """Rows of one file. Raises DatasetError naming file and line for what cannot be read."""
    kind = kind_of(file.name)
    try:
        if kind in _TABLES:
            yield from _TABLES[kind](file)
        else:
            with open_text(file) as text:
                yield from _READERS[kind](file, text)
    except DatasetError:
        raise
    except (*UNREADABLE, ValueError, struct.error) as error:
        raise _damaged(file, error) from error


def count_rows(file: DataFile) -> int | None:
    """Exact; None if counting would take long."""
    kind = kind_of(file.name)
    try:
        if kind == "parquet":
            return count_parquet_rows(file)
        is_lines = kind in ("jsonl", "ndjson")
        most = _MAX_LINES_BYTES if is_lines else _MAX_PARSED_BYTES
        if file.num_bytes > (_MAX_PACKED_BYTES if file.packing else most):
            return None
        if is_lines:
            with open_bytes(file) as stream:
                return _count_lines(stream)
    except (*UNREADABLE, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise _damaged(file, error) from error
    return sum(1 for _ in read_rows(file))


def _count_lines(stream: BinaryIO) -> int:
    """Lines that are not blank; a line may be longer than memory."""
    count, says_something = 0, False
    while chunk := stream.read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        says_something = says_something or not _is_blank(first)
        for line in others:
            count += says_something
            says_something = not _is_blank(line)
    return count + says_something


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def _damaged(file: DataFile, error: BaseException) -> DatasetError:
    return DatasetError(
        f"{file.name} cannot be read: {first_line(error)}.", "Check that the file is whole."
    )
