"""Which rows go to which expert: every token once for each of its k experts, sorted by expert, in groups of experts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch

Tensor = torch.Tensor
WEIGHTS_AT_ONCE = 2**27  # of a group of experts, while they are in 16 bits: 256 MiB
_ROWS_AT_ONCE = 2**15


@dataclass(frozen=True)
class Group:
    """Some experts that have rows, in ascending order, and where their rows are.

    rows: of all rows. numbers: int32 (C) on the device, as `experts`; starts: int32 (C + 1), where the rows of each
    begin inside the group. most: rows of the expert that has most.
    """

    experts: tuple[int, ...]
    rows: slice
    counts: tuple[int, ...]
    numbers: Tensor
    starts: Tensor

    @property
    def most(self) -> int:
        return max(self.counts)

    @property
    def ends(self) -> Tensor:
        """int32 (C), as torch's grouped products want them."""
        return self.starts[1:]


@dataclass(frozen=True)
class Routing:
    """The choice of a router for T tokens with k experts each, S = T k rows.

    tokens: (S), whose row it is; places: (T, k), where a token's rows are; order: (S), the inverse of places.
    counts: rows of each expert.
    """

    tokens: Tensor
    places: Tensor
    order: Tensor
    counts: tuple[int, ...]

    def groups(self, weights_per_expert: int) -> Iterator[Group]:
        """All experts that have rows, as many at a time as may be in 16 bits."""
        experts = [e for e, count in enumerate(self.counts) if count]
        start = 0
        while experts:
            taken = _fitting([self.counts[e] for e in experts], weights_per_expert)
            group = self._group(tuple(experts[:taken]), start)
            yield group
            experts, start = experts[taken:], group.rows.stop

    def _group(self, experts: tuple[int, ...], start: int) -> Group:
        counts = tuple(self.counts[e] for e in experts)
        starts = list(accumulate(counts, initial=0))
        # One copy for both, which the device need not be waited for.
        numbers = torch.tensor([*experts, *starts], dtype=torch.int32)
        if self.tokens.is_cuda:
            numbers = numbers.pin_memory().to(self.tokens.device, non_blocking=True)
        # Of their own memory each: grouped products want what they read to be aligned.
        chosen, offsets = numbers[: len(experts)], numbers[len(experts) :].clone()
        return Group(experts, slice(start, start + starts[-1]), counts, chosen, offsets)


def _fitting(counts: list[int], weights_per_expert: int) -> int:
    """How many of the experts with these rows make a group."""
    most = max(1, WEIGHTS_AT_ONCE // weights_per_expert)
    rows = list(accumulate(counts[:most]))
    return max(1, sum(total <= _ROWS_AT_ONCE for total in rows))


def route(index: Tensor, num_experts: int) -> Routing:
    """From the chosen experts (T, k) of each token. Waits once for the device, for the sizes of groups."""
    flat = index.reshape(-1)
    sorted_experts, order = torch.sort(flat, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    ends = torch.searchsorted(
        sorted_experts, torch.arange(num_experts, device=order.device), right=True
    )
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    return Routing(order // index.shape[-1], places.view(index.shape), order, tuple(counts))
