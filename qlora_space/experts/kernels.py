# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels of the experts, for CUDA only; `formulas.py` computes the same in plain torch, and tests compare both.

S rows (a token once for each of its experts), sorted by expert; E experts; N outputs, K inputs, R rank.
"""

from typing import Any

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

Tensor = torch.Tensor
_BLOCK = 64  # weights that share a scale (stacks.py)
_DEQUANTIZE = (64, 4)  # blocks and warps of a program
_EXPAND_TILE = (64, 128, 4)  # rows (routing.TILE), columns, warps
_SMALLEST_DOT = 16  # rows of a product that tensor cores take


@triton.jit
def _dequantize_nf4(
    codes, absmax, absmax2, code2, offset, table, bounds, out, blocks, per_expert, first,
    BLOCK: tl.constexpr, PER_SCALE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE blocks of one expert that has rows; two weights a byte, the first in the high half."""
    expert = tl.program_id(1).to(tl.int64)
    if tl.load(bounds + expert) == tl.load(bounds + expert + 1):
        return
    half: tl.constexpr = BLOCK // 2
    at = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = at < blocks
    block = expert * per_expert + first + at
    scale = tl.load(code2 + tl.load(absmax + block, mask=inside, other=0).to(tl.int32))
    scale = scale * tl.load(absmax2 + block // PER_SCALE, mask=inside, other=0.0)
    scale += tl.load(offset)
    byte = tl.load(
        codes + block[:, None] * half + tl.arange(0, half)[None, :], mask=inside[:, None], other=0
    ).to(tl.int32)
    high = tl.load(table + (byte >> 4)) * scale[:, None]
    low = tl.load(table + (byte & 15)) * scale[:, None]
    pair = tl.interleave(high.to(out.dtype.element_ty), low.to(out.dtype.element_ty))
    to = (expert * blocks + at)[:, None] * BLOCK
    tl.store(out + to + tl.arange(0, BLOCK)[None, :], pair, mask=inside[:, None])


def dequantize_nf4(stack: Any, routing: Any, part: int, out: Tensor) -> None:
    """Fill `out` (E, N / parts, K) with one of the equal parts of each expert that has rows, the same bits as
    bitsandbytes; of others it is not written."""
    experts, rows, columns = out.shape
    blocks, (tile, warps) = rows * columns // _BLOCK, _DEQUANTIZE
    # No fused multiply-add: bitsandbytes rounds after the product and after the sum.
    _dequantize_nf4[(triton.cdiv(blocks, tile), experts)](
        stack.codes, stack.absmax, stack.absmax2, stack.code2, stack.offset, stack.table,
        routing.bounds, out, blocks, stack.shape[1] * columns // _BLOCK, part * blocks,
        BLOCK=_BLOCK, PER_SCALE=256, TILE=tile, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _dequantize_mxfp4(
    codes, scales, table, bounds, out, groups, per_expert, first,
    GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE groups of GROUP weights of one expert that has rows; two weights a byte, the first in the low half."""
    expert = tl.program_id(1).to(tl.int64)
    if tl.load(bounds + expert) == tl.load(bounds + expert + 1):
        return
    half: tl.constexpr = GROUP // 2
    at = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = at < groups
    group = expert * per_expert + first + at
    exponent = tl.load(scales + group, mask=inside, other=127).to(tl.float32) - 127.0
    scale = tl.exp2(exponent)
    byte = tl.load(
        codes + group[:, None] * half + tl.arange(0, half)[None, :], mask=inside[:, None], other=0
    ).to(tl.int32)
    low = tl.load(table + (byte & 15)) * scale[:, None]
    high = tl.load(table + (byte >> 4)) * scale[:, None]
    pair = tl.interleave(low.to(out.dtype.element_ty), high.to(out.dtype.element_ty))
    to = (expert * groups + at)[:, None] * GROUP
    tl.store(out + to + tl.arange(0, GROUP)[None, :], pair, mask=inside[:, None])


def dequantize_mxfp4(stack: Any, routing: Any, part: int, out: Tensor) -> None:
    """As dequantize_nf4, of an Mxfp4Stack: exact in bf16."""
    experts, rows, columns = out.shape
    groups, tile = rows * columns // stack.GROUP, 128
    _dequantize_mxfp4[(triton.cdiv(groups, tile), experts)](
        stack.codes, stack.scales, stack.table, routing.bounds, out, groups,
        stack.shape[1] * columns // stack.GROUP, part * groups, GROUP=stack.GROUP, TILE=tile,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _expand(
    h, h_stride, b, b_expert, b_row, b_column, source, source_stride, to, to_stride, experts, firsts,
    bounds, count, width, rank, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS rows of one expert."""
    expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
    if expert >= count:
        return
    row = (tl.load(firsts + tl.program_id(1)) + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, RANK)
    is_row, is_column, is_rank = row < tl.load(bounds + expert + 1), column < width, r < rank
    left = tl.load(
        h + row[:, None] * h_stride + r[None, :], mask=is_row[:, None] & is_rank[None, :], other=0.0
    )
    right = tl.load(
        b + expert * b_expert + column[None, :] * b_row + r[:, None] * b_column,
        mask=is_column[None, :] & is_rank[:, None], other=0.0,
    )  # fmt: skip
    inside = is_row[:, None] & is_column[None, :]
    base = tl.load(source + row[:, None] * source_stride + column[None, :], mask=inside, other=0.0)
    total = base.to(tl.float32) + tl.dot(left, right)
    at = to + row[:, None] * to_stride + column[None, :]
    tl.store(at, total.to(to.dtype.element_ty), mask=inside)


def expand(h: Tensor, b: Tensor, routing: Any, source: Tensor, to: Tensor) -> None:
    """to = source + h Bᵀ in one pass: h (S, R), B (E, N, R) of each row's expert, of any strides; rows of `source` and
    `to` (S, N) may be pieces of longer ones."""
    count, width, rank = b.shape
    (rows, columns, warps), (experts, firsts) = _EXPAND_TILE, routing.tiles
    _expand[(triton.cdiv(width, columns), len(experts))](
        h, h.stride(0), b, *b.stride(), source, source.stride(0), to, to.stride(0), experts, firsts,
        routing.bounds, count, width, rank, ROWS=rows, COLUMNS=columns,
        RANK=max(_SMALLEST_DOT, triton.next_power_of_2(rank)), num_warps=warps,
    )  # fmt: skip


@triton.jit
def _gate(x, GELU: tl.constexpr):
    """(activation, its derivative) of fp32 x: silu, or the tanh form of gelu."""
    if GELU:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        t = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
        y = 0.5 * x * (1.0 + t)
        slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (
            1.0 + 0.134145 * x * x
        )
    else:
        s = tl.sigmoid(x)
        y = x * s
        slope = s * (1.0 + x * (1.0 - s))
    return y, slope


@triton.jit
def _gated(gate_up, out, width, GELU: tl.constexpr, SIZE: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    y, _ = _gate(gate, GELU)
    tl.store(out + row * width + column, (y * up).to(out.dtype.element_ty), mask=inside)


def gated(gate_up: Tensor, *, is_gelu: bool) -> Tensor:
    """act(gate) * up, (S, I) of (S, 2 I)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    size = triton.next_power_of_2(width)
    _gated[(rows,)](gate_up, out, width, GELU=is_gelu, SIZE=size, num_warps=_warps(size))
    return out


@triton.jit
def _gated_backward(
    gate_up, d, weight, acted, share, width, GELU: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = column < width
    at = gate_up + row * 2 * width + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(d + row * width + column, mask=inside, other=0.0).to(tl.float32)
    y, slope = _gate(gate, GELU)
    factor = tl.load(weight + row).to(tl.float32)
    tl.store(
        acted + row * width + column, (factor * y * up).to(acted.dtype.element_ty), mask=inside
    )
    tl.store(share + row, tl.sum(grad * y * up, 0))
    grad *= factor
    tl.store(at, (grad * up * slope).to(gate_up.dtype.element_ty), mask=inside)
    tl.store(at + width, (grad * y).to(gate_up.dtype.element_ty), mask=inside)


def gated_backward(
    gate_up: Tensor, d: Tensor, weight: Tensor, *, is_gelu: bool
) -> tuple[Tensor, Tensor]:
    """(weight act(gate) * up, the sums of d act(gate) up) of rows; gate_up becomes its gradient.

    d: (S, I), the gradient of what is multiplied by `weight` (S).
    """
    rows, width = d.shape
    acted, share = torch.empty_like(d), torch.empty(rows, dtype=torch.float32, device=d.device)
    size = triton.next_power_of_2(width)
    _gated_backward[(rows,)](
        gate_up, d, weight, acted, share, width, GELU=is_gelu, SIZE=size, num_warps=_warps(size)
    )
    return acted, share


@triton.jit
def _combine(
    rows, places, weights, out, width, K: tl.constexpr, WEIGHTED: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = column < width
    total = tl.zeros((SIZE,), tl.float32)
    for i in range(K):
        place = tl.load(places + token * K + i).to(tl.int64)
        value = tl.load(rows + place * width + column, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + token * K + i).to(tl.float32)
        total += value
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=inside)


def combine(rows: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
    """(T, H): the sum of each token's rows, by weights (T, k) or plain; places: (T, k), where its rows are.

    In the order of k and in fp32, so the same every time.
    """
    tokens, k = places.shape
    out = rows.new_empty(tokens, rows.shape[1])
    size = min(2048, triton.next_power_of_2(rows.shape[1]))
    _combine[(tokens, triton.cdiv(rows.shape[1], size))](
        rows, places, places if weights is None else weights, out, rows.shape[1],
        K=k, WEIGHTED=weights is not None, SIZE=size, num_warps=_warps(size),
    )  # fmt: skip
    return out


@triton.jit
def _add_gradient_a(
    d, bounds, to, rank, width, padded, ROWS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    expert = tl.program_id(1)
    if tl.load(bounds + expert) == tl.load(bounds + expert + 1):
        return
    r = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * SIZE + tl.arange(0, SIZE)[None, :]
    inside = (r < rank) & (column < width)
    value = tl.load(d + (expert.to(tl.int64) * padded + r) * width + column, mask=inside, other=0.0)
    at = to + (expert.to(tl.int64) * rank + r) * width + column
    tl.store(at, tl.load(at, mask=inside, other=0.0) + value.to(tl.float32), mask=inside)


@triton.jit
def _add_gradient_b(
    d, bounds, to, scale, experts, width, rank,
    RANK: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of EXPERTS experts: from (E, N, R) to peft's (N, r, E)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None, None]
    r = tl.arange(0, RANK)[None, :, None]
    number = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)
    is_one = number < experts
    begin = tl.load(bounds + number, mask=is_one, other=0)
    end = tl.load(bounds + number + 1, mask=is_one, other=0)
    e = number[None, None, :]
    is_there = (n < width) & (r < rank) & (end > begin)[None, None, :]
    value = tl.load(d + (e.to(tl.int64) * width + n) * RANK + r, mask=is_there, other=0.0)
    at = to + (n * rank + r) * experts + e
    total = tl.load(at, mask=is_there, other=0.0) + scale * value.to(tl.float32)
    tl.store(at, total, mask=is_there)


def add_gradients(da: Tensor, db: Tensor, routing: Any, a: Tensor, b: Tensor, scale: float) -> None:
    """Add gradients to peft's: da (E, R, K) to a (E, r, K), scale db (E, N, R) to b (N, r, E).

    Experts without rows are left out, whatever da and db say of them.
    """
    (experts, rank, width), padded, outputs = a.shape, da.shape[1], db.shape[1]
    ranks = triton.next_power_of_2(rank)
    _add_gradient_a[(triton.cdiv(width, 256), experts)](
        da, routing.bounds, a, rank, width, padded, ROWS=ranks, SIZE=256, num_warps=4
    )
    rows, wide = 4, min(32, triton.next_power_of_2(experts))
    _add_gradient_b[(triton.cdiv(outputs, rows), triton.cdiv(experts, wide))](
        db, routing.bounds, b, scale, experts, outputs, rank, RANK=padded, ROWS=rows, EXPERTS=wide,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _stacked(
    b,
    out,
    experts,
    width,
    scale,
    rank,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """ROWS outputs of EXPERTS experts: from peft's (N, r, E) to (E, N, R)."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None, None]
    r = tl.arange(0, RANK)[None, :, None]
    e = tl.program_id(1) * EXPERTS + tl.arange(0, EXPERTS)[None, None, :]
    is_there = (n < width) & (e < experts)
    value = tl.load(b + (n * rank + r) * experts + e, mask=is_there & (r < rank), other=0.0) * scale
    to = out + (e.to(tl.int64) * width + n) * RANK + r
    tl.store(to, value.to(out.dtype.element_ty), mask=is_there)


def stacked_b(b: Tensor, experts: int, rank: int, padded: int, scale: float, dtype) -> Tensor:
    """peft's B (N, r E) times scale as (E, N, R) with R = `padded` columns, zeros beyond r; R is a power of two."""
    width = b.shape[0]
    out = torch.empty(experts, width, padded, dtype=dtype, device=b.device)
    rows, wide = 4, min(32, triton.next_power_of_2(experts))
    _stacked[(triton.cdiv(width, rows), triton.cdiv(experts, wide))](
        b, out, experts, width, scale, rank, RANK=padded, ROWS=rows, EXPERTS=wide, num_warps=4
    )
    return out


def _warps(size: int) -> int:
    return max(1, min(8, size // 256))
