"""What kernels.py computes, in plain torch: for CPUs, and what tests compare the kernels with."""

from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def expand(h: Tensor, b: Tensor, group: Any, source: Tensor, to: Tensor) -> None:
    """to = source + h Bᵀ: h (S, R), B (C, N, R) of each row's expert."""
    start = 0
    for count, matrix in zip(group.counts, b, strict=True):
        rows = slice(start, start + count)
        to[rows] = source[rows] + h[rows] @ matrix.t()
        start += count


def gated(gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    """act(gate) * up, (S, I) of (S, 2 I)."""
    gate, up = gate_up.chunk(2, -1)
    return (F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)) * up


def add_rows(rows: Tensor, places: Tensor, weights: Tensor | None, group: Any, out: Tensor) -> None:
    """Add to `out` (T, H) each token's rows of the group, by weights (T, k) or plain."""
    for i, place in enumerate(places.unbind(1)):
        is_here = (place >= group.rows.start) & (place < group.rows.stop)
        token = is_here.nonzero()[:, 0]
        found = rows[place[token] - group.rows.start].to(out.dtype)
        if weights is not None:
            found = found * weights[token, i, None].to(out.dtype)
        out[token] += found


def add_gradients(da: Tensor, db: Tensor, group: Any, a: Tensor, b: Tensor, scale: float) -> None:
    """Add da (C, R, K) to a (E, r, K), and scale db (C, N, R) to b (N, r, E)."""
    experts = group.numbers.long()
    rank = a.shape[1]
    a.index_add_(0, experts, da[:, :rank].to(a.dtype))
    b.index_add_(2, experts, db[..., :rank].permute(1, 2, 0).to(b.dtype), alpha=scale)


def stacked_b(
    b: Tensor, experts: int, rank: int, padded: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """peft's B (N, r E) times scale as (E, N, R)."""
    out = b.new_zeros(experts, b.shape[0], padded, dtype=dtype)
    out[..., :rank] = b.view(b.shape[0], rank, experts).permute(2, 0, 1) * scale
    return out
