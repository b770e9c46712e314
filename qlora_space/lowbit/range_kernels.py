# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""The search for ranges by importance (grid.py) in one pass over a weight: a group stays in registers. CUDA only."""

import torch
import triton
import triton.language as tl

from qlora_space.lowbit import grid as grids
from qlora_space.lowbit.grid import SMALLEST_SCALE, Grid

_TILE = 16  # groups of a program


def search_ranges(
    w: torch.Tensor, grid: Grid, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As grid._search_ranges: scales fp16 and codes of zeros uint8 (m, groups) for w (m, groups, size) fp32."""
    m, groups, size = w.shape
    scales = torch.empty(m, groups, dtype=torch.float16, device=w.device)
    zeros = torch.empty(m, groups, dtype=torch.uint8, device=w.device)
    _search[(triton.cdiv(m * groups, _TILE),)](
        w.contiguous(), counts.contiguous(), scales, zeros, m * groups, groups, grid.zero_start, grid.zero_step,
        SMALLEST_SCALE, TOP=2**grid.bits - 1, ZERO_TOP=grid.zero_top, SIZE=size,
        WIDTH=triton.next_power_of_2(size), TILE=_TILE, SHRINKS=grids._SHRINKS, REFINEMENTS=grids._REFINEMENTS,
        num_warps=4,
    )  # fmt: skip
    return scales, zeros


@triton.jit
def _search(  # noqa: PLR0913 - a kernel
    w, counts, scales, zeros, num, groups, zero_start, zero_step, smallest, TOP: tl.constexpr, ZERO_TOP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, SHRINKS: tl.constexpr, REFINEMENTS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    i = tl.arange(0, WIDTH)
    inside = at < num
    both = inside[:, None] & (i < SIZE)[None, :]
    value = tl.load(w + at[:, None] * SIZE + i[None, :], mask=both, other=0.0)
    count = tl.load(counts + (at % groups)[:, None] * SIZE + i[None, :], mask=both, other=0.0)
    high = tl.max(tl.where(both, value, -1e30), 1)
    low = -tl.min(tl.where(both, value, 1e30), 1)
    error = tl.full((TILE,), 1e38, tl.float32)
    scale = tl.full((TILE,), 1.0, tl.float32)
    code = tl.zeros((TILE,), tl.float32)
    for shrink_at in range(SHRINKS):
        shrink = 0.3 + 0.7 * shrink_at / (SHRINKS - 1)
        step = tl.maximum((high + low) / TOP * shrink, smallest)
        nearest = tl.floor((TOP / 2 - (high - low) / 2 / step - zero_start) / zero_step + 0.5)
        for offset in tl.static_range(-1, 2):
            other = tl.minimum(tl.maximum(nearest + offset, 0.0), ZERO_TOP)
            zero = zero_start + zero_step * other
            reach = tl.maximum(high / tl.maximum(TOP - zero, 0.5), low / tl.maximum(zero, 0.5))
            one = _as_stored(reach * shrink, smallest)
            found = _error(value, count, one, zero, TOP)
            is_better = found < error
            error = tl.where(is_better, found, error)
            scale = tl.where(is_better, one, scale)
            code = tl.where(is_better, other, code)
    zero = zero_start + zero_step * code
    for _ in tl.static_range(REFINEMENTS):  # given the codes, the best scale is a regression
        level = _level(value, scale, zero, TOP)
        one = tl.sum(value * level * count, 1) / tl.maximum(tl.sum(level * level * count, 1), 1e-12)
        one = _as_stored(one, smallest)
        found = _error(value, count, one, zero, TOP)
        scale = tl.where(found < error, one, scale)
        error = tl.minimum(found, error)
    tl.store(scales + at, scale, mask=inside)
    tl.store(zeros + at, code.to(tl.uint8), mask=inside)


@triton.jit
def _as_stored(scale, smallest):
    return tl.maximum(scale.to(tl.float16).to(tl.float32), smallest)


@triton.jit
def _level(value, scale, zero, TOP: tl.constexpr):
    """The nearest codes less their zero."""
    code = tl.floor(value / scale[:, None] + zero[:, None] + 0.5)
    return tl.minimum(tl.maximum(code, 0.0), TOP) - zero[:, None]


@triton.jit
def _error(value, count, scale, zero, TOP: tl.constexpr):
    off = _level(value, scale, zero, TOP) * scale[:, None] - value
    return tl.sum(off * off * count, 1)
