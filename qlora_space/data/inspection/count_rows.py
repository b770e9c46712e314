"""Counts what a run will train on and hold out, with what the run itself chooses rows with."""

import hashlib
import math
import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlora_space.core.facts import RowCounts
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.data.corpus import Documents, HeldOutCandidates
from qlora_space.data.formats.detect import Detection
from qlora_space.data.rows import Row
from qlora_space.data.selection import (
    deduplicate,
    from_eval_split,
    pack_documents,
    split,
    split_pieces,
)
from qlora_space.data.template.renderer import Renderer
from qlora_space.data.tokenize_rows import Tokenized, tokenize_rows
from qlora_space.plan import (
    MAX_HELD_OUT_ROWS,
    default_eval_fraction,
    holds_out_pieces,
    most_held_out,
)

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class EvalRows:
    """The first rows of the evaluation split, and how they become tokens."""

    rows: Sequence[Row]
    are_all: bool
    detection: Detection
    renderer: Renderer

    def tokenized(self) -> Iterator[Tokenized]:
        """A few at a time: seldom are more than the first used."""
        for start in range(0, len(self.rows), _ROWS_AT_ONCE):
            batch = self.rows[start : start + _ROWS_AT_ONCE]
            yield from tokenize_rows(batch, self.detection, self.renderer)


class _Inspected(Documents):
    """Documents of the inspected rows."""

    def __init__(self, request: TrainingRequest, max_length: int) -> None:
        super().__init__(max_length, request.drop_truncated, request.text_overlap_tokens)
        self._contents: list[bytes] = []

    def _append(self, ids: list[int], flags: bytes, digest: bytes) -> None:
        super()._append(ids, flags, digest)
        self._contents.append(hashlib.blake2b(array("i", ids).tobytes(), digest_size=16).digest())

    def content(self, index: int) -> bytes:
        return self._contents[index]


@dataclass(frozen=True)
class _Chosen:
    """Documents to train on, and how many rows and documents are held out."""

    indices: list[int]
    eval_fraction: float
    most_held_out: int
    held_out_rows: int
    held_out_documents: int
    is_exact: bool


def count_rows(
    request: TrainingRequest,
    format: Format,
    tokenized: Sequence[Tokenized],
    max_length: int,
    num_rows: int,
    eval_rows: EvalRows | None,
) -> RowCounts:
    """`num_rows`: of the split. `eval_rows`: None where rows of the training split are held out."""
    if 2 * request.text_overlap_tokens > max_length:  # there is no plan for that
        request = request.model_copy(update={"text_overlap_tokens": 0})
    planned = min(num_rows, request.max_rows or num_rows)
    documents = _Inspected(request, max_length)
    usable = [row for row in tokenized if documents.add(row)]
    if eval_rows:
        chosen = _with_eval_split(request, documents, eval_rows)
    elif len(tokenized) < planned:
        chosen = _with_nothing_held_out(request, documents, planned)
    elif holds_out_pieces(format, documents.count_distinct()):
        chosen = _with_pieces_held_out(request, documents)
    else:
        chosen = _with_rows_held_out(request, documents, usable, planned)
    counts = _counted(request, documents, chosen)
    return counts if len(tokenized) == planned else _scaled(counts, len(tokenized), planned)


def _with_eval_split(
    request: TrainingRequest, documents: Documents, eval_rows: EvalRows
) -> _Chosen:
    own = Documents(documents.max_length, overlap=request.text_overlap_tokens)
    held, _ = from_eval_split(own, eval_rows.tokenized(), documents, MAX_HELD_OUT_ROWS)
    rows = len(held.examples)
    is_exact = eval_rows.are_all or rows == MAX_HELD_OUT_ROWS
    most = rows if is_exact and rows else MAX_HELD_OUT_ROWS
    indices = list(range(len(documents)))
    return _Chosen(indices, 0.0, most, rows, len(held.indices), is_exact)


def _with_nothing_held_out(request: TrainingRequest, documents: Documents, planned: int) -> _Chosen:
    """Of a sample: how many rows will be held out follows from the number of all."""
    fraction = _fraction(request, planned)
    most = most_held_out(planned, fraction)
    return _Chosen(list(range(len(documents))), fraction, most, 0, 0, is_exact=False)


def _with_pieces_held_out(request: TrainingRequest, documents: _Inspected) -> _Chosen:
    fraction = _fraction(request, len(documents))
    most = most_held_out(len(documents), fraction)
    indices, held = split_pieces(documents, documents.content, fraction, most)
    return _Chosen(indices, fraction, most, len(held), len(held), is_exact=True)


def _with_rows_held_out(
    request: TrainingRequest, documents: Documents, usable: Sequence[Tokenized], planned: int
) -> _Chosen:
    fraction = _fraction(request, planned)
    candidates = HeldOutCandidates(request.seed, most_held_out(planned, fraction))
    for row in usable:
        if row.example is not None:
            candidates.offer(row.digest, row.example)
    indices, held = split(documents, candidates, fraction)
    rows = len(held.examples)
    return _Chosen(indices, fraction, rows, rows, len(held.indices), is_exact=True)


def _fraction(request: TrainingRequest, num_rows: int) -> float:
    given = request.eval_fraction
    return default_eval_fraction(num_rows) if given is None else given


def _counted(request: TrainingRequest, documents: Documents, chosen: _Chosen) -> RowCounts:
    indices = deduplicate(documents, chosen.indices) if request.deduplicate else chosen.indices
    packed = pack_documents(documents, indices, packing=request.packing)
    row_lengths = [sum(map(documents.length, row)) for row in packed]
    return RowCounts(
        is_exact=chosen.is_exact,
        max_length=documents.max_length,
        rows=len({documents.row_of[index] for index in indices}),
        tokens=sum(map(documents.length, indices)),
        packed_rows=len(packed),
        longest_row=max(row_lengths, default=0),
        row_deviation=statistics.pstdev(row_lengths) if packed else 0.0,
        eval_fraction=chosen.eval_fraction,
        most_held_out=chosen.most_held_out,
        held_out_rows=chosen.held_out_rows,
        held_out_documents=chosen.held_out_documents,
    )


def _scaled(counts: RowCounts, looked_at: int, num_rows: int) -> RowCounts:
    """For all rows, from counts of the inspected ones."""
    taken = counts.most_held_out if counts.eval_fraction else 0
    usable = counts.rows * num_rows / max(1, looked_at)
    share = max(0.0, usable - taken) / max(1, counts.rows)
    return counts.model_copy(
        update={
            "is_exact": False,
            "rows": round(counts.rows * share),
            "tokens": round(counts.tokens * share),
            "packed_rows": math.ceil(counts.packed_rows * share),
            "held_out_rows": taken or counts.held_out_rows,
            "held_out_documents": taken or counts.held_out_documents,
        }
    )
