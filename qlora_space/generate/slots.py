"""Keys and values of answers in progress, each row at a position of its own."""

from types import ModuleType
from typing import Any

import torch
from transformers import Cache, DynamicCache

Tensor = torch.Tensor
_NARROW = 64  # lengths are rounded up to it where shapes may change


class SlotCache(Cache):
    """`num_slots` rows of `length` positions, of which the first `num_rows` are in use.

    A pass of one token a row writes at `positions` (num_slots) and attends to `masks`.
    """

    def __init__(
        self,
        num_slots: int,
        length: int,
        window: int | None,
        device: torch.device,
        few_rows: ModuleType | None = None,
    ) -> None:
        """few_rows: the kernels, where they are to be used."""
        super().__init__(layers=[])
        self._few_rows = few_rows
        self.num_slots, self.length, self.window = num_slots, length, window
        self.num_rows = 0
        self.positions = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._at = torch.arange(length, device=device)
        self._rows = torch.arange(num_slots, device=device)
        self._held: list[tuple[Tensor, Tensor]] = []
        self.shown = length  # positions that attention reads: all that are written, and maybe more

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Keys and values (rows, heads, 1, width) of one token; returns those of all positions."""
        n = self.num_rows
        keys, values = self._held[layer_idx]
        is_plain = key.shape == value.shape and key.stride(-1) == value.stride(-1) == 1
        if self._few_rows is not None and is_plain and keys.stride() == values.stride():
            self._few_rows.keep(key, value, keys, values, self.positions)
        else:
            rows, at = self._rows[:n], self.positions[:n]
            keys[rows, :, at] = key[:, :, 0]
            values[rows, :, at] = value[:, :, 0]
        return keys[:n, :, : self.shown], values[:n, :, : self.shown]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Masks and positions are given, so nobody needs it."""
        return 0

    def fill(self, first_row: int, prompts: DynamicCache, lengths: list[int]) -> None:
        """Put the keys and values of prompts, padded on the right, into rows from `first_row` on."""
        layers: list[Any] = prompts.layers
        for index, layer in enumerate(layers):
            keys, values = layer.keys, layer.values
            if index >= len(self._held):
                self._held.append((self._empty(keys), self._empty(values)))
            rows = slice(first_row, first_row + len(lengths))
            for mine, theirs in zip(self._held[index], (keys, values), strict=True):
                width = min(theirs.shape[2], self.length)
                mine[rows, :, :width] = theirs[:, :, :width]
        to = self.positions[first_row : first_row + len(lengths)]
        to.copy_(torch.tensor(lengths, device=to.device))

    def move(self, source: int, to: int) -> None:
        for keys, values in self._held:
            keys[to], values[to] = keys[source], values[source]
        self.positions[to] = self.positions[source]

    def narrow(self, longest: int) -> None:
        """Attend to no more positions than are written; shapes change, so not where a graph was captured."""
        self.shown = min(self.length, -(-longest // _NARROW) * _NARROW)

    def mask(self, *, is_sliding: bool) -> Tensor:
        """(rows, 1, 1, shown): True where a row may look."""
        at, now = self._at[: self.shown], self.positions[: self.num_rows, None]
        seen = at <= now
        if is_sliding and self.window:
            seen &= at > now - self.window
        return seen[:, None, None]

    def _empty(self, like: Tensor) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros(self.num_slots, heads, self.length, width)
