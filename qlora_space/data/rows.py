"""A dataset as it is read: a source of rows, a row, and what is wrong with one."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

SAVE_AS_UTF8 = (
    "Save the file as UTF-8 in an editor, or convert it (of GBK: iconv -f GBK -t UTF-8 OLD > NEW)."
)
# Enough for 2,000 rows of 4,000 characters, which take 20 seconds of CPU; of books of a megabyte a sample is 8.
_SAMPLE_CHARS = 8 * 2**20


@dataclass(frozen=True)
class RowProblem:
    """Why a row cannot be used. `code` is stable, `message` is a sentence for people."""

    code: str
    message: str


class Unusable(Exception):
    """Raised while a row is read that cannot be used; `to_example` returns its `problem`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = RowProblem(code, message)


@dataclass(frozen=True)
class Row:
    """One row of a source. `location` is where a person finds it, such as 'train.jsonl, line 7'.

    `has_shared_schema`: it comes from a table whose objects all have the same keys, as Parquet and Arrow
    store them, so that a null may stand for a key that this row never had.
    `begins`, `ends`: False where its text goes on in the row before or after it.
    """

    number: int
    location: str
    values: dict[str, Any]
    problem: RowProblem | None = None
    has_shared_schema: bool = False
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True)
class Source:
    """A split of a dataset that can be read again and again, always with the same rows.

    `read` starts over and gives all rows; `count` gives their number, or None if counting takes long;
    `note` says what a person should know of how its files are read.
    """

    id: str
    sha: str
    read: Callable[[], Iterator[Row]] = field(repr=False)
    config: str = ""
    split: str = "train"
    configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    eval_split: str = ""
    license: str = ""
    is_public: bool = False  # everybody may read its rows
    num_bytes: int = 0  # of this split when unpacked; estimated for a compressed file
    count: Callable[[], int | None] = field(default=lambda: None, repr=False)
    note: Callable[[], Sequence[RowProblem]] = field(default=lambda: (), repr=False)

    @property
    def num_rows(self) -> int | None:
        """Exact; None if only reading everything could tell and that takes long."""
        return self.count()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in the order of the first readable row."""
        names = (tuple(row.values) for row in itertools.islice(self.rows(), 100) if row.values)
        return next(names, ())

    def sample(self, max_rows: int) -> tuple[list[Row], bool]:
        """The first rows, and whether these are all. Fewer than `max_rows` where rows are very long."""
        rows: list[Row] = []
        size = 0
        for row in self.rows():
            if len(rows) == max_rows or size > _SAMPLE_CHARS:
                return rows, False
            rows.append(row)
            size += len(repr(row.values))
        return rows, True

    def rows(self) -> Iterator[Row]:
        """All rows in order. Raises DatasetError that names where the source cannot be read."""
        return self.read()


def not_utf8(location: str, text: str = "") -> RowProblem:
    """`text`: as it was read, with lone surrogates for what is no UTF-8."""
    maybe = _maybe_encoded(text)
    return RowProblem("not_utf8", f"{location} is not valid UTF-8{f': {maybe}' if maybe else ''}.")


def _maybe_encoded(text: str) -> str:
    """Two-byte encodings differ from those of one byte: which of them it is, few bytes do not say."""
    line = next((line for line in text.splitlines() if not is_utf8(line)), "")
    try:
        found = line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a character, written as an escape
        return ""
    if not line:
        return ""
    try:
        found.decode("gb18030")
    except UnicodeDecodeError:
        return "it may be Windows-1252 or another encoding of one byte a letter"
    return "it may be GBK, Big5 or another East Asian encoding"


def is_utf8(text: str) -> bool:
    """False for bytes that were not UTF-8, and for half surrogate pairs that no tokenizer takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
