"""Packed rows to micro-batches of tensors, step after step.

Documents in a row are told apart by position ids that start again at 0: transformers builds a block-diagonal causal
mask from them when there is no attention mask (masking_utils.find_packed_sequence_indices), so packed documents never
attend to each other. Padding is a document of its own without labels. Axes: B rows, S longest row of the micro-batch.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

import pyarrow.compute
import torch
from datasets import Dataset

from qlora_space.data import IGNORED_LABEL
from qlora_space.data.order import rows_of_step
from qlora_space.plan import Plan, num_steps

Inputs = dict[str, torch.Tensor]  # input_ids, labels, position_ids: int64 (B, S)


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors; `rows`: their numbers in the prepared data."""

    rows: tuple[int, ...]
    inputs: Inputs


class PackedRow(TypedDict):
    """A row of train.arrow; seq_lengths are the documents' lengths and add up to the row's."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]


@dataclass(frozen=True)
class PackedCollator:
    """Pads to the longest row, rounded up so that a GPU sees few different shapes."""

    pad_token_id: int
    multiple_of: int = 64

    def __call__(self, rows: Sequence[PackedRow]) -> Inputs:
        """input_ids, labels, position_ids: int64 (B, S)."""
        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple_of) * self.multiple_of
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED_LABEL)
        position_ids = torch.zeros((len(rows), width), dtype=torch.int64)
        for i, row in enumerate(rows):
            size = len(row["input_ids"])
            input_ids[i, :size] = torch.tensor(row["input_ids"])
            labels[i, :size] = torch.tensor(row["labels"])
            lengths = [*row["seq_lengths"], width - size]
            position_ids[i] = torch.cat([torch.arange(length) for length in lengths])
            # The first token of a document must not be predicted from the last token of the one before.
            starts = torch.tensor([0, *row["seq_lengths"][:-1]]).cumsum(0)
            labels[i, starts] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


@dataclass(frozen=True)
class TrainingRows:
    """The packed rows of a run and how they become tensors."""

    rows: Dataset
    collate: PackedCollator

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return row_lengths(self.rows)

    @property
    def longest_tokens(self) -> int:
        return max(self.lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def longest(self, count: int) -> Batch:
        """A micro-batch of the longest rows: what needs the most memory."""
        order = sorted(range(len(self.rows)), key=self.lengths.__getitem__)
        return self.batch(order[-count:])

    def first(self, count: int) -> Batch:
        return self.batch(range(min(count, len(self.rows))))

    def batch(self, indices: Iterable[int]) -> Batch:
        numbers = tuple(indices)
        chosen: list[Any] = [self.rows[i] for i in numbers]
        return Batch(numbers, self.collate(chosen))


class MicroBatches:
    """The rows of optimizer step after optimizer step, in micro-batches; endless."""

    def __init__(self, rows: TrainingRows, plan: Plan, first_step: int, rows_at_once: int) -> None:
        """rows_at_once: rows of a micro-batch, of all GPUs together."""
        self._rows, self._plan = rows, plan
        self._per_step = math.ceil(rows_per_step(plan) / rows_at_once)
        self._stream = self._read(first_step, rows_at_once)
        self._prefetched: deque[Batch] = deque()

    def next_step(self) -> list[Batch]:
        """The micro-batches of one optimizer step, on the CPU: as many rows as planned, whatever their size."""
        return [
            self._prefetched.popleft() if self._prefetched else next(self._stream)
            for _ in range(self._per_step)
        ]

    def prefetch(self) -> None:
        """Collate one more micro-batch, while the GPU is busy."""
        self._prefetched.append(next(self._stream))

    def _read(self, step: int, rows_at_once: int) -> Iterator[Batch]:
        size, num_rows = rows_per_step(self._plan), len(self._rows)
        while True:
            order = rows_of_step(step, size, num_rows, self._plan.seed).tolist()
            for start in range(0, size, rows_at_once):
                yield self._rows.batch(order[start : start + rows_at_once])
            step += 1


def rows_per_step(plan: Plan) -> int:
    """Rows of one optimizer step, of all GPUs together, however many there are now."""
    on_one_gpu = plan.per_device_train_batch_size * plan.gradient_accumulation_steps
    return on_one_gpu * plan.num_processes


def total_steps(plan: Plan, num_rows: int) -> int:
    """Optimizer steps of the whole run, on the rows that it has."""
    return num_steps(plan.max_steps, plan.num_train_epochs, num_rows, rows_per_step(plan))


def row_lengths(rows: Dataset) -> list[int]:
    """Tokens of each row, without making Python lists of them."""
    compute: Any = pyarrow.compute  # its functions are made when it is imported
    return compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


def num_trained(batch: Batch) -> int:
    """Tokens that are predicted: a label at the first position has nothing before it."""
    return int((batch.inputs["labels"][:, 1:] != IGNORED_LABEL).sum())
