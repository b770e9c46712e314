"""What kernels.py computes, in plain torch: for CPUs, and what tests compare the kernels with."""

from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def expand(h: Tensor, b: Tensor, routing: Any, source: Tensor, to: Tensor) -> None:
    """to = source + h Bᵀ: h (S, R), B (E, N, R) of each row's expert."""
    start = 0
    for count, matrix in zip(routing.counts, b, strict=True):
        rows = slice(start, start + count)
        to[rows] = source[rows] + h[rows] @ matrix.t()
        start += count


def gated(gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    """act(gate) * up, (S, I) of (S, 2 I)."""
    gate, up = gate_up.chunk(2, -1)
    return (F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)) * up


def combine(rows: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
    """(T, H): the sum of each token's rows, by weights (T, k) or plain."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    found = rows[places].to(wide)
    if weights is not None:
        found = found * weights[..., None].to(wide)
    return found.sum(1).to(rows.dtype)


def add_gradients(da: Tensor, db: Tensor, routing: Any, a: Tensor, b: Tensor, scale: float) -> None:
    """Add da (E, R, K) to a (E, r, K), and scale db (E, N, R) to b (N, r, E), of experts that have rows."""
    rank = a.shape[1]
    for expert, count in enumerate(routing.counts):
        if count:
            a[expert] += da[expert, :rank]
            b[..., expert].add_(db[expert, :, :rank], alpha=scale)


def stacked_b(
    b: Tensor, experts: int, rank: int, padded: int, scale: float, dtype: torch.dtype
) -> Tensor:
    """peft's B (N, r E) times scale as (E, N, R)."""
    out = b.new_zeros(experts, b.shape[0], padded, dtype=dtype)
    out[..., :rank] = b.view(b.shape[0], rank, experts).permute(2, 0, 1) * scale
    return out
