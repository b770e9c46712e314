"""Which rows go to which expert: every token once for each of its k experts, sorted by expert, in groups of experts."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

Tensor = torch.Tensor
BYTES_AT_ONCE = (
    2**30
)  # of a group at work: its largest matrices in 16 bits, and all that is there for its rows
_FEWEST_HIT = (
    0.5  # share of the experts in a group that have rows, below which only those are unpacked
)
_counted: dict[tuple[torch.device, torch.dtype], Tensor] = {}


@dataclass(frozen=True)
class Cost:
    """Bytes at work: of one expert, and of one row."""

    expert: int
    row: int


@dataclass(frozen=True)
class Group:
    """Experts in ascending order, and where their rows are.

    counts: rows of each expert; there may be none. rows: of all rows. numbers: int32 (C) on the device, as `experts`;
    starts: int32 (C + 1), where the rows of each begin inside the group.
    """

    experts: tuple[int, ...]
    rows: slice
    counts: tuple[int, ...]
    numbers: Tensor
    starts: Tensor

    @property
    def most(self) -> int:
        """Rows of the expert that has most."""
        return max(self.counts)

    @property
    def ends(self) -> Tensor:
        """int32 (C), as torch's grouped products want them."""
        return self.starts[1:]

    @property
    def is_range(self) -> bool:
        """Whether no expert between the first and the last one is left out."""
        return self.experts[-1] - self.experts[0] + 1 == len(self.experts)


@dataclass(frozen=True)
class Routing:
    """The choice of a router for T tokens with k experts each, S = T k rows.

    tokens: (S), whose row it is; places: (T, k), where a token's rows are; order: (S), the inverse of places.
    counts: rows of each expert; bounds: int32 (E + 1) on the device, where the rows of each begin.
    """

    tokens: Tensor
    places: Tensor
    order: Tensor
    counts: tuple[int, ...]
    bounds: Tensor

    def groups(self, cost: Cost) -> Iterator[Group]:
        """All experts that have rows, as few groups as BYTES_AT_ONCE allow, of about the same cost."""
        hit = [e for e, count in enumerate(self.counts) if count]
        costs = [cost.expert + self.counts[e] * cost.row for e in hit]
        share = sum(costs) / -(-sum(costs) // BYTES_AT_ONCE)
        taken: list[int] = []
        spent = 0
        for expert, its_cost in zip(hit, costs, strict=True):
            if taken and spent + its_cost / 2 > share:
                yield self._group(taken)
                taken, spent = [], 0
            taken.append(expert)
            spent += its_cost
        yield self._group(taken)

    def _group(self, hit: list[int]) -> Group:
        """Where most have rows, of all experts in between, for which nothing has to be copied to the device."""
        first, last = hit[0], hit[-1]
        start = sum(self.counts[:first])
        if len(hit) >= _FEWEST_HIT * (last - first + 1):
            experts = tuple(range(first, last + 1))
            numbers = _count(self.bounds.device, torch.int32, len(self.counts) + 1)[
                first : last + 1
            ]
            starts = self.bounds[first : last + 2]
            starts = starts - start if start else starts
        else:
            experts = tuple(hit)
            starts = list(accumulate((self.counts[e] for e in hit), initial=0))
            numbers, starts = (
                torch.tensor(values, dtype=torch.int32, device=self.bounds.device)
                for values in (hit, starts)
            )
        counts = tuple(self.counts[e] for e in experts)
        return Group(experts, slice(start, start + sum(counts)), counts, numbers, starts)


def route(index: Tensor, num_experts: int) -> Routing:
    """From the chosen experts (T, k) of each token. Waits once for the device, for the sizes of groups."""
    flat = index.reshape(-1).to(torch.int16)  # sorted in fewer passes
    experts, order = torch.sort(flat, stable=True)
    bounds = torch.searchsorted(
        experts, _count(flat.device, torch.int16, num_experts + 1), out_int32=True
    )
    rows = _count(flat.device, torch.int64, len(flat))
    places = torch.empty_like(order).scatter_(0, order, rows)
    ends = bounds.tolist()
    counts = tuple(end - start for start, end in pairwise(ends))
    return Routing(order // index.shape[-1], places.view(index.shape), order, counts, bounds)


def _count(device: torch.device, dtype: torch.dtype, length: int) -> Tensor:
    """0, 1, 2 .. on a device, made once."""
    known = _counted.get((device, dtype))
    if known is None or len(known) < length:
        size = max(length, 2 * len(known) if known is not None else 0)
        size = min(size, torch.iinfo(dtype).max)
        known = _counted[device, dtype] = torch.arange(size, dtype=dtype, device=device)
    return known[:length]
