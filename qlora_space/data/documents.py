"""Rows in, tokens out, in batches: the part that inspecting and preparing have in common."""

import contextlib
import gc
import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data.formats.detect import Detection, detect
from qlora_space.data.formats.examples import to_example, to_trained
from qlora_space.data.messages import Example
from qlora_space.data.reading.sources import Source
from qlora_space.data.rows import Row, RowProblem
from qlora_space.data.template.align import Rendered
from qlora_space.data.template.proof import Tokens
from qlora_space.data.template.renderer import Renderer

_ROWS_AT_ONCE = 1024
_CHARS_AT_ONCE = 2**22
_BATCHES_AHEAD = 2
_SAMPLE_ROWS = 100
# Rows, tokens and encodings hold no cycles: looking for them after every 700 objects finds nothing.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


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
    # While the caller takes one batch, a thread tokenizes the next, outside the interpreter's lock, and
    # another has the one after it rendered, in the template's own process.
    with _rare_collections(), ThreadPoolExecutor(1) as renders, ThreadPoolExecutor(1) as aligns:
        waiting: deque[tuple[_Batch, Future[list[Tokens | RowProblem]]]] = deque()
        for batch in _batches(rows, detection):
            rendered = renders.submit(renderer.render, batch.usable)
            waiting.append((batch, aligns.submit(_aligned, renderer, rendered)))
            if len(waiting) > _BATCHES_AHEAD:
                yield from _tokenized(*waiting.popleft())
        for each in waiting:
            yield from _tokenized(*each)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _aligned(
    renderer: Renderer, rendered: Future[list[Rendered | RowProblem]]
) -> list[Tokens | RowProblem]:
    return renderer.align(rendered.result())


@dataclass(frozen=True)
class _Batch:
    rows: list[Row]
    examples: list[Example | RowProblem]

    @property
    def usable(self) -> list[Example]:
        return [example for example in self.examples if not isinstance(example, RowProblem)]


def _batches(rows: Iterable[Row], detection: Detection) -> Iterator[_Batch]:
    """So many rows, fewer where they are long."""
    batch, characters = _Batch([], []), 0
    for row in rows:
        example = trained_example(row, detection)
        batch.rows.append(row)
        batch.examples.append(example)
        characters += _length(example)
        if len(batch.rows) == _ROWS_AT_ONCE or characters > _CHARS_AT_ONCE:
            yield batch
            batch, characters = _Batch([], []), 0
    if batch.rows:
        yield batch


def _length(example: Example | RowProblem) -> int:
    if isinstance(example, RowProblem):
        return 0
    return len(example) if isinstance(example, str) else sum(len(m.content) for m in example)


def _tokenized(batch: _Batch, tokens: Future[list[Tokens | RowProblem]]) -> Iterator[Tokenized]:
    outcomes = iter(tokens.result())
    for row, example in zip(batch.rows, batch.examples, strict=True):
        if isinstance(example, RowProblem):
            yield Tokenized(row, None, example, b"")
            continue
        outcome = next(outcomes)
        if isinstance(outcome, RowProblem):
            outcome = RowProblem(outcome.code, f"{row.place}: {outcome.message}")
        yield Tokenized(row, example, outcome, digest_of(example))


def trained_example(row: Row, detection: Detection) -> Example | RowProblem:
    """What supervised training learns of a row, or why nothing."""
    example = to_example(row, detection)
    return example if isinstance(example, RowProblem) else to_trained(example, row.place)


def digest_of(example: Example) -> bytes:
    """The same for the same content."""
    content = example if isinstance(example, str) else repr([m.to_json() for m in example])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
