# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels of the fast path: each one pass over its tensors, fp32 inside, rounded once on the way out.

Between two large products a layer is bound by memory: what torch does in several kernels reads and writes the same
tensors several times, and one fused kernel does so once. Imported only where Triton is there; `formulas.py` computes
the same in plain torch, and the tests compare both.
T tokens, H hidden, I intermediate, D head dim, V vocabulary; every matrix has a last stride of 1.
"""

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

from qlora_space.fast.adapter_kernels import expand, gated, gated_backward, scaled_copies
from qlora_space.fast.attention_kernels import attend, attend_backward
from qlora_space.fast.fp8_kernels import quantize_rows, to_fp8

__all__ = [
    "attend",
    "attend_backward",
    "cross_entropy",
    "dequantize",
    "expand",
    "gated",
    "gated_backward",
    "gather",
    "quantize_rows",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "scaled_copies",
    "to_fp8",
]  # fmt: skip
DEQUANTIZE = (64, 4)  # blocks and warps of a program; chosen by `benchmarks/tile_sizes.py`


@triton.jit
def _dequantize(
    packed, absmax8, code2, absmax2, offset, table, out, blocks, blocks_per_row, out_stride,
    BLOCK: tl.constexpr, BLOCK2: tl.constexpr, NESTED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE blocks of BLOCK weights that share a scale; two weights a byte, the first in the high half."""
    half: tl.constexpr = BLOCK // 2
    block = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside = block < blocks
    if NESTED:
        codes = tl.load(absmax8 + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(code2 + codes) * tl.load(absmax2 + block // BLOCK2, mask=inside, other=0.0)
        scale += tl.load(offset)
    else:
        scale = tl.load(absmax8 + block, mask=inside, other=0.0)
    at = block[:, None] * half + tl.arange(0, half)[None, :]
    byte = tl.load(packed + at, mask=inside[:, None], other=0).to(tl.int32)
    high = tl.load(table + (byte >> 4)) * scale[:, None]
    low = tl.load(table + (byte & 15)) * scale[:, None]
    pair = tl.interleave(high.to(out.dtype.element_ty), low.to(out.dtype.element_ty))
    row, column = block // blocks_per_row, (block % blocks_per_row) * BLOCK
    to = (row * out_stride + column)[:, None] + tl.arange(0, BLOCK)[None, :]
    tl.store(out + to, pair, mask=inside[:, None])


def dequantize(packed, absmax, nested, table, blocksize: int, out: torch.Tensor) -> None:
    """4-bit codes of bitsandbytes to `out` (N, K), the same bits as bitsandbytes (QLoRA, arXiv 2305.14314, sec. 3).

    packed: uint8 (N K / 2,); absmax: a scale for each `blocksize` weights; table: fp32 (16,), what a code stands for.
    nested: (code2, absmax2, offset, blocksize2) where absmax itself is quantized, else None.
    """
    rows, columns = out.shape
    blocks, (tile, warps) = rows * columns // blocksize, DEQUANTIZE
    code2, absmax2, offset, blocksize2 = nested or (absmax, absmax, absmax, 1)
    # No fused multiply-add: bitsandbytes rounds after the product and after the sum.
    _dequantize[(triton.cdiv(blocks, tile),)](
        packed, absmax, code2, absmax2, offset, table, out, blocks, columns // blocksize, out.stride(0),
        BLOCK=blocksize, BLOCK2=blocksize2, NESTED=nested is not None, TILE=tile,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _rms_norm(
    x, added, weight, total, out, width, eps, ADD: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(added + row * width + column, mask=inside, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + row * width + column, value, mask=inside)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    w = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row * width + column, value * scale * w, mask=inside)


def rms_norm(x, weight, eps: float, added=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + added, its RMSNorm), each (T, H), by weight: fp32 (H,); without `added` the first is x. arXiv 1910.07467."""
    out = torch.empty_like(x)
    total = x if added is None else torch.empty_like(x)
    width = x.shape[-1]
    size = triton.next_power_of_2(width)
    _rms_norm[(x.shape[0],)](
        x, added, weight, total, out, width, eps, ADD=added is not None, SIZE=size, num_warps=_warps(size)
    )  # fmt: skip
    return total, out


@triton.jit
def _rms_norm_backward(
    dout, x, weight, residual, dx, width, eps, ADD: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(dout + row * width + column, mask=inside, other=0.0).to(tl.float32)
    grad *= tl.load(weight + column, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    mean = tl.sum(grad * value, 0) / width * scale * scale
    result = (grad - value * mean) * scale
    if ADD:
        result += tl.load(residual + row * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * width + column, result, mask=inside)


def rms_norm_backward(dout, x, weight, eps: float, residual=None) -> torch.Tensor:
    """Gradient of x (T, H), plus `residual`; no gradient of the weight, which is frozen."""
    dx = torch.empty_like(x)
    width = x.shape[-1]
    size = triton.next_power_of_2(width)
    _rms_norm_backward[(x.shape[0],)](
        dout, x, weight, residual, dx, width, eps, ADD=residual is not None, SIZE=size, num_warps=_warps(size)
    )  # fmt: skip
    return dx


@triton.jit
def _rotate(
    qkv, qkv_stride, wq, wk, cos, sin, dq, dq_stride, dk, dk_stride, dv, dv_stride, out, out_stride,
    eps, QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, BACKWARD: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one token. Forward writes queries and keys; backward gradients of queries, keys and values."""
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * HEADS
    head = first + tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, SIZE)[None, :]
    inside = (i < HALF) & (head < QUERIES + 2 * KEYS)
    raw = qkv + token * qkv_stride + head * DIM
    to = out + token * out_stride + head * DIM
    if BACKWARD:
        if first < QUERIES:
            given = dq + token * dq_stride + head * DIM
        elif first < QUERIES + KEYS:
            given = dk + token * dk_stride + (head - QUERIES) * DIM
        else:
            given = dv + token * dv_stride + (head - QUERIES - KEYS) * DIM
    else:
        given = raw
    g1 = tl.load(given + i, mask=inside, other=0.0).to(tl.float32)
    g2 = tl.load(given + HALF + i, mask=inside, other=0.0).to(tl.float32)
    if first < QUERIES + KEYS:
        c = tl.load(cos + token * HALF + i, mask=i < HALF, other=0.0)
        s = tl.load(sin + token * HALF + i, mask=i < HALF, other=0.0)
        if NORM:
            weight = wq
            if first >= QUERIES:
                weight = wk
            w1 = tl.load(weight + i, mask=i < HALF, other=0.0)
            w2 = tl.load(weight + HALF + i, mask=i < HALF, other=0.0)
            x1 = tl.load(raw + i, mask=inside, other=0.0).to(tl.float32)
            x2 = tl.load(raw + HALF + i, mask=inside, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / DIM + eps)[:, None]
        if BACKWARD:
            r1 = g1 * c + g2 * s
            r2 = g2 * c - g1 * s
            if NORM:
                r1 *= w1
                r2 *= w2
                mean = tl.sum(r1 * x1 + r2 * x2, 1)[:, None] / DIM * scale * scale
                r1 = (r1 - x1 * mean) * scale
                r2 = (r2 - x2 * mean) * scale
        else:
            if NORM:
                g1 = x1 * scale * w1
                g2 = x2 * scale * w2
            r1 = g1 * c - g2 * s
            r2 = g2 * c + g1 * s
        g1 = r1
        g2 = r2
    tl.store(to + i, g1, mask=inside)
    tl.store(to + HALF + i, g2, mask=inside)
    rest: tl.constexpr = DIM - 2 * HALF
    if rest > 0:
        j = 2 * HALF + tl.arange(0, SIZE * 2)[None, :]
        tail = (j < DIM) & (head < QUERIES + 2 * KEYS)
        tl.store(to + j, tl.load(given + j, mask=tail, other=0.0), mask=tail)


def rotate(qkv, heads: tuple[int, int], norms, cos, sin, eps: float, grads=None) -> torch.Tensor:
    """Queries and keys, normed, their first elements rotated (RoPE, arXiv 2104.09864): (T, (queries + keys) D).

    With grads = (dq, dk, dv), each (T, heads, D): d(qkv). heads: (queries, keys); norms: fp32 (D,) of both, or None.
    cos, sin: fp32 (T, rotated / 2), the first half of what transformers' rotary embedding gives.
    """
    queries, keys = heads
    dim, half = qkv.shape[1] // (queries + 2 * keys), cos.shape[1]
    count = queries + (2 if grads else 1) * keys
    out = torch.empty(qkv.shape[0], count * dim, dtype=qkv.dtype, device=qkv.device)
    per_program = next(n for n in (8, 4, 2, 1) if queries % n == 0 and keys % n == 0)
    strides = [t for g in (grads or ()) for t in (g, g.stride(0))] or [qkv, 0] * 3
    wq, wk = norms or (cos, cos)
    _rotate[(qkv.shape[0], count // per_program)](
        qkv, qkv.stride(0), wq, wk, cos, sin, *strides, out, out.stride(0), eps,
        QUERIES=queries, KEYS=keys, DIM=dim, HALF=half, NORM=norms is not None, BACKWARD=grads is not None,
        HEADS=per_program, SIZE=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _gather(table, ids, out, width, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    at = tl.load(ids + row).to(tl.int64) * width + column
    tl.store(
        out + row * width + column, tl.load(table + at, mask=column < width), mask=column < width
    )


def gather(table, ids) -> torch.Tensor:
    """Rows of a table that lies in pinned host memory: (T, H) on the GPU."""
    width = table.shape[1]
    out = torch.empty(ids.numel(), width, dtype=table.dtype, device=ids.device)
    _gather[(ids.numel(), triton.cdiv(width, 1024))](table, ids, out, width, SIZE=1024, num_warps=4)
    return out


@triton.jit
def _cross_entropy(logits, targets, losses, width, cap, CAPPED: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = logits + row * width
    peak = tl.full((SIZE,), float("-inf"), tl.float32)
    mass = tl.zeros((SIZE,), tl.float32)
    for start in range(0, width, SIZE):
        column = start + tl.arange(0, SIZE)
        z = tl.load(at + column, mask=column < width, other=float("-inf")).to(tl.float32)
        if CAPPED:
            z = tl.where(column < width, cap * (2 * tl.sigmoid(2 * z / cap) - 1), float("-inf"))
        higher = tl.maximum(peak, z)
        known = higher > float("-inf")
        mass = tl.where(known, mass * tl.exp(peak - higher) + tl.exp(z - higher), 0.0)
        peak = higher
    top = tl.max(peak, 0)
    total = tl.log(tl.sum(tl.where(mass > 0, mass * tl.exp(peak - top), 0.0), 0)) + top
    target = tl.load(targets + row)
    kept = tl.where(target >= 0, 1.0, 0.0)
    hit = tl.load(at + tl.maximum(target, 0)).to(tl.float32)
    if CAPPED:
        hit = cap * (2 * tl.sigmoid(2 * hit / cap) - 1)
    tl.store(losses + row, (total - hit) * kept)
    tl.debug_barrier()
    for start in range(0, width, SIZE):
        column = start + tl.arange(0, SIZE)
        z = tl.load(at + column, mask=column < width, other=float("-inf")).to(tl.float32)
        slope = 1.0
        if CAPPED:
            t = 2 * tl.sigmoid(2 * z / cap) - 1
            z = cap * t
            slope = 1 - t * t
        grad = (tl.exp(z - total) - tl.where(column == target, 1.0, 0.0)) * slope * kept
        tl.store(at + column, grad, mask=column < width)


def cross_entropy(logits, targets, cap: float) -> torch.Tensor:
    """fp32 losses (rows,) in nats; logits (rows, V) become their gradients in place. cap: c tanh(z / c), 0 for none.

    A target below 0 has no loss and no gradient.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy[(logits.shape[0],)](
        logits, targets, losses, logits.shape[1], cap, CAPPED=cap > 0, SIZE=4096, num_warps=8
    )
    return losses


def _warps(size: int) -> int:
    return min(max(size // 512, 1), 16)
