"""Rows in, tokens out, in batches: the part that inspecting and preparing have in common."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qlora_space.data.examples import to_example
from qlora_space.data.formats import Detection, detect
from qlora_space.data.proof import Tokens
from qlora_space.data.rows import Example, Row, RowProblem
from qlora_space.data.sources import Source
from qlora_space.data.template import Renderer
from qlora_space.errors import DatasetError
from qlora_space.request import Format

_ROWS_AT_ONCE = 512
_SAMPLE_ROWS = 100


@dataclass(frozen=True)
class Tokenized:
    """What became of one row. `digest` is the same for rows with the same content."""

    row: Row
    example: Example | None
    outcome: Tokens | RowProblem
    digest: bytes


def detect_format(
    source: Source, rows: Iterable[Row], format: Format | None, columns: Mapping[str, str] | None
) -> tuple[tuple[str, ...], Detection]:
    """Columns and format from the first rows. Raises DatasetError, also for no rows at all."""
    first = list(itertools.islice(rows, _SAMPLE_ROWS))
    if not first:
        hint = "Choose another split." if len(source.splits) > 1 else "Choose another dataset."
        raise DatasetError(f"{source.id} ({source.split}) has no rows.", hint)
    values = [row.values for row in first if row.values]
    if not values:
        problem = next(row.problem for row in first if row.problem)
        raise DatasetError(
            f"No row of {source.id} can be read: {problem.message}", "Check the file."
        )
    names = tuple(dict.fromkeys(name for row in values for name in row))
    return names, detect(names, values, format, columns)


def tokenize_rows(
    rows: Iterable[Row], detection: Detection, renderer: Renderer
) -> Iterator[Tokenized]:
    """Each row with its tokens or its problem, in order."""
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, _ROWS_AT_ONCE)):
        examples = [to_example(row, detection) for row in batch]
        usable = [example for example in examples if not isinstance(example, RowProblem)]
        outcomes = iter(renderer.tokenize(usable))
        for row, example in zip(batch, examples, strict=True):
            if isinstance(example, RowProblem):
                yield Tokenized(row, None, example, b"")
            else:
                outcome = next(outcomes)
                if isinstance(outcome, RowProblem):
                    outcome = RowProblem(outcome.code, f"{row.place}: {outcome.message}")
                yield Tokenized(row, example, outcome, _digest(example))


def _digest(example: Example) -> bytes:
    content = example if isinstance(example, str) else repr([(m.role, m.content) for m in example])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
