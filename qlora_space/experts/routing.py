"""Which rows go to which expert: every token once for each of its k experts, sorted by expert.

On a GPU that has grouped products nothing here is known to the host, so that nothing waits and a step can be captured;
elsewhere the host must know how many rows each expert has.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

Tensor = torch.Tensor
TILE = 64  # rows of one expert that a kernel takes at once
_GROUPED_CAPABILITY = (
    9,
    0,
)  # torch's grouped products are kernels from Hopper on, and a loop before
_counted: dict[tuple[torch.device, torch.dtype], Tensor] = {}


@dataclass(frozen=True)
class Routing:
    """The choice of a router for T tokens with k of E experts each, S = T k rows.

    tokens: (S), whose row it is; places: (T, k), where a token's rows are; order: (S), the inverse of places.
    experts: (S), of each row; bounds: int32 (E + 1), where the rows of each expert begin. counts: rows of each expert,
    where the host knows. tiles: int32 pairs of an expert (E for none) and the first of at most TILE rows of it.
    """

    tokens: Tensor
    places: Tensor
    order: Tensor
    experts: Tensor
    bounds: Tensor
    counts: tuple[int, ...] = ()
    tiles: tuple[Tensor, Tensor] | None = None

    @property
    def ends(self) -> Tensor:
        """int32 (E), as torch's grouped products want them."""
        return self.bounds[1:]


def route(index: Tensor, num_experts: int, dtype: torch.dtype) -> Routing:
    """From the chosen experts (T, k) of each token, whose products will be in `dtype`."""
    flat = index.reshape(-1).to(torch.int16)  # sorted in fewer passes
    experts, order = torch.sort(flat, stable=True)
    numbers = _count(flat.device, torch.int16, num_experts + 1)
    bounds = torch.searchsorted(experts, numbers, out_int32=True)
    rows = _count(flat.device, torch.int64, len(flat))
    places = torch.empty_like(order).scatter_(0, order, rows).view(index.shape)
    common = (order // index.shape[-1], places, order, experts, bounds)
    tiles = _tiles(bounds, len(flat)) if index.is_cuda else None
    if has_grouped_products(index.device, dtype):
        return Routing(*common, tiles=tiles)
    counts = tuple(end - start for start, end in pairwise(bounds.tolist()))
    return Routing(*common, counts, tiles)


def has_grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies rows with the matrix of their group in one kernel."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(device) >= _GROUPED_CAPABILITY


def _tiles(bounds: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """As many as there can be, whatever is chosen."""
    experts = len(bounds) - 1
    each = (bounds.diff() + TILE - 1) // TILE
    ends = each.cumsum(0)
    tile = _count(bounds.device, torch.int64, -(-rows // TILE) + experts)
    expert = torch.searchsorted(ends, tile, right=True, out_int32=True)
    before = F.pad(ends - each, (0, 1))
    first = bounds[expert] + (tile - before[expert]) * TILE
    return expert, first.to(torch.int32)


def _count(device: torch.device, dtype: torch.dtype, length: int) -> Tensor:
    """0, 1, 2 .. on a device, made once."""
    known = _counted.get((device, dtype))
    if known is None or len(known) < length:
        size = min(max(length, 2**16), torch.iinfo(dtype).max)
        known = _counted[device, dtype] = torch.arange(size, dtype=dtype, device=device)
    return known[:length]
