"""Packed rows to tensors. Documents in a row are told apart by position ids that start again at 0.

transformers builds a block-diagonal causal mask from such position ids when there is no attention
mask (masking_utils.find_packed_sequence_indices), so packed documents never see each other. Padding
is a document of its own without labels. Axes: B rows, S longest row of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from qlora_space.data import IGNORED_LABEL


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

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
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
            # The first token of a document has no past: the last one before it must not be asked for it.
            starts = torch.tensor([0, *row["seq_lengths"][:-1]]).cumsum(0)
            labels[i, starts] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
