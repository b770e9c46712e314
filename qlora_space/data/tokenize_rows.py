"""From rows to tokens, in batches: what inspecting and preparing a dataset have in common."""

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
from qlora_space.data.rows import SAVE_AS_UTF8, Row, RowProblem, Source
from qlora_space.data.template.loss_mask import Rendered, Tokens
from qlora_space.data.template.renderer import Renderer

_MAX_ROWS_PER_BATCH = 1024
_MAX_CHARS_PER_BATCH = 2**22
_BATCHES_AHEAD = 2
_SAMPLE_ROWS = 100
# Rows, tokens and encodings form no cycles: collecting every 700 objects, as Python does, finds nothing.
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


@dataclass(frozen=True)
class Tokenized:
    """One row with its tokens or its problem. `digest` is the same for rows with the same content."""

    row: Row
    example: Example | None
    outcome: Tokens | RowProblem
    digest: bytes


def detect_format(
    source: Source, rows: Iterable[Row], format: Format | None, columns: Mapping[str, str] | None
) -> tuple[tuple[str, ...], Detection]:
    """Columns and format from the first rows. Raises DatasetError, also if there are no rows."""
    first = list(itertools.islice(rows, _SAMPLE_ROWS))
    if not first and len(source.splits) > 1:
        raise DatasetError(f"{source.id} ({source.split}) has no rows.", "Choose another split.")
    if not first:
        raise DatasetError(f"{source.id} has no rows.", "Choose another dataset.")
    values = [row.values for row in first if row.values]
    if not values:
        problem = next(row.problem for row in first if row.problem)
        hint = SAVE_AS_UTF8 if problem.code == "not_utf8" else "Check the file."
        raise DatasetError(f"No row of {source.id} can be read: {problem.message}", hint)
    names = tuple(dict.fromkeys(name for row in values for name in row))
    return names, detect(names, values, format, columns)


def tokenize_rows(
    rows: Iterable[Row], detection: Detection, renderer: Renderer
) -> Iterator[Tokenized]:
    """Each row with its tokens or its problem, in order."""
    # While the caller handles one batch, a thread tokenizes the next, without the interpreter's lock, and
    # another thread renders the one after it, in the template's own process.
    with _rare_collections(), ThreadPoolExecutor(1) as render, ThreadPoolExecutor(1) as align:
        pending: deque[tuple[_Batch, Future[list[Tokens | RowProblem]]]] = deque()
        for batch in _batches(rows, detection):
            rendered = render.submit(renderer.render, batch.usable)
            pending.append((batch, align.submit(_align, renderer, rendered)))
            if len(pending) > _BATCHES_AHEAD:
                yield from _tokenized(*pending.popleft(), renderer)
        for each in pending:
            yield from _tokenized(*each, renderer)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _align(
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
    """A fixed number of rows, fewer where they are long."""
    batch, characters = _Batch([], []), 0
    for row in rows:
        example = trained_example(row, detection)
        batch.rows.append(row)
        batch.examples.append(example)
        characters += _length(example)
        if len(batch.rows) == _MAX_ROWS_PER_BATCH or characters > _MAX_CHARS_PER_BATCH:
            yield batch
            batch, characters = _Batch([], []), 0
    if batch.rows:
        yield batch


def _length(example: Example | RowProblem) -> int:
    if isinstance(example, RowProblem):
        return 0
    return len(example) if isinstance(example, str) else sum(len(m.content) for m in example)


def _tokenized(
    batch: _Batch, tokens: Future[list[Tokens | RowProblem]], renderer: Renderer
) -> Iterator[Tokenized]:
    outcomes = iter(tokens.result())
    for row, example in zip(batch.rows, batch.examples, strict=True):
        if isinstance(example, RowProblem):
            yield Tokenized(row, None, example, b"")
            continue
        outcome = next(outcomes)
        if isinstance(outcome, RowProblem):
            outcome = RowProblem(outcome.code, f"{row.location}: {outcome.message}")
        elif max(outcome.input_ids, default=0) >= renderer.embeddings:
            outcome = _beyond_embeddings(row, outcome, renderer)
        elif not (row.begins and row.ends):
            outcome = _part_of_text(row, outcome, renderer)
        yield Tokenized(row, example, outcome, digest_of(example))


def _beyond_embeddings(row: Row, tokens: Tokens, renderer: Renderer) -> RowProblem:
    token = max(tokens.input_ids)
    text, most = renderer.tokenizer.convert_ids_to_tokens(token), renderer.embeddings
    return RowProblem(
        "token_beyond",
        f"{row.location}: the token {text!r} has the id {token:,}, and the base has {most:,} embeddings.",
    )


def _part_of_text(row: Row, tokens: Tokens, renderer: Renderer) -> Tokens:
    """Without the tokens that begin and end a document, where the text goes on in another row."""
    ids, tokenizer = tokens.input_ids, renderer.tokenizer
    first = 1 if not row.begins and ids[:1] == [tokenizer.bos_token_id] else 0
    last = len(ids) - (not row.ends and ids[-1:] == [tokenizer.eos_token_id])
    return Tokens(ids[first:last], tokens.trained[first:last])


def trained_example(row: Row, detection: Detection) -> Example | RowProblem:
    """What supervised training takes of a row, or why the row cannot be used."""
    example = to_example(row, detection)
    return example if isinstance(example, RowProblem) else to_trained(example, row.location)


def text_of_example(example: Example) -> str:
    """All that is read of a row as one text: contents, reasoning and calls."""
    if isinstance(example, str):
        return example
    return "\n".join(part for turn in example for part in (turn.reasoning, turn.as_text) if part)


def digest_of(example: Example) -> bytes:
    """The same for the same content."""
    content = example if isinstance(example, str) else repr([m.to_json() for m in example])
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
