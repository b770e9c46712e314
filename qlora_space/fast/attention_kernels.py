# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels of attention that caps its logits, c tanh(s / c) (Gemma 2, arXiv 2408.00118), as none of torch's does.

Tiles of keys pass by tiles of queries, so that the T x T scores are never there (FlashAttention, arXiv 2205.14135). A
capped logit lies between -c and c, so exp() of it neither overflows nor vanishes, and no running maximum is kept.
T tokens, D head dim, a power of two; q (T, queries, D), k and v (T, keys, D), heads side by side.
"""

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

# Queries and keys of a tile, tiles on their way from memory, warps. The first three were chosen by
# `benchmarks/tile_sizes.py` for Hopper, whose shared memory they fill; the last fits the 99 KB of most GPUs.
FORWARD, QUERY_GRADIENTS, KEY_GRADIENTS = (128, 64, 2, 8), (64, 32, 1, 4), (64, 64, 2, 8)
SMALL = (32, 32, 1, 4)
_HOPPER = 9


@triton.jit
def _rows(matrix, row, stride, inside, DIM: tl.constexpr):
    """(rows, DIM), zeros where not inside."""
    at = row.to(tl.int64)[:, None] * stride + tl.arange(0, DIM)[None, :]
    return tl.load(matrix + at, mask=inside[:, None], other=0.0)


@triton.jit
def _capped(scores, scale, cap):
    """(c tanh(s scale / c), tanh itself)."""
    t = 2 * tl.sigmoid(2 * scores * (scale / cap)) - 1
    return cap * t, t


@triton.jit
def _attend(
    q, k, v, begins, out, lse, tokens, q_stride, k_stride, v_stride, scale, cap,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS queries of one head; lse (QUERIES, T) is the logarithm of the sum of exponentials."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    head = tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < tokens
    begin = tl.load(begins + row, mask=inside, other=tokens)
    query = _rows(q + head * DIM, row, q_stride, inside, DIM)
    k += head // GROUPS * DIM
    v += head // GROUPS * DIM
    total = tl.zeros((ROWS, DIM), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    first = tl.min(begin, 0) // COLUMNS * COLUMNS
    for start in tl.range(first, (block + 1) * ROWS, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        key = _rows(k, column, k_stride, column < tokens, DIM)
        value = _rows(v, column, v_stride, column < tokens, DIM)
        capped, _ = _capped(tl.dot(query, tl.trans(key), input_precision="ieee"), scale, cap)
        seen = (column[None, :] <= row[:, None]) & (column[None, :] >= begin[:, None])
        p = tl.where(seen, tl.exp(capped), 0.0)
        mass += tl.sum(p, 1)
        total = tl.dot(p.to(value.dtype), value, total, input_precision="ieee")
    mass = tl.where(inside, mass, 1.0)
    at = row.to(tl.int64)[:, None] * (QUERIES * DIM) + head * DIM + tl.arange(0, DIM)[None, :]
    tl.store(out + at, total / mass[:, None], mask=inside[:, None])
    tl.store(lse + head.to(tl.int64) * tokens + row, tl.log(mass), mask=inside)


@triton.jit
def _query_gradients(
    q, k, v, begins, out, lse, dout, dq, delta, tokens, q_stride, k_stride, v_stride, scale, cap,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """As _attend; also delta (QUERIES, T), the sum of out times dout, which the other half needs."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = row < tokens
    begin = tl.load(begins + row, mask=inside, other=tokens)
    query = _rows(q + head * DIM, row, q_stride, inside, DIM)
    given = _rows(dout + head * DIM, row, QUERIES * DIM, inside, DIM)
    attended = _rows(out + head * DIM, row, QUERIES * DIM, inside, DIM)
    mean = tl.sum(attended.to(tl.float32) * given.to(tl.float32), 1)
    log_mass = tl.load(lse + head.to(tl.int64) * tokens + row, mask=inside, other=0.0)
    tl.store(delta + head.to(tl.int64) * tokens + row, mean, mask=inside)
    k += head // GROUPS * DIM
    v += head // GROUPS * DIM
    total = tl.zeros((ROWS, DIM), tl.float32)
    first = tl.min(begin, 0) // COLUMNS * COLUMNS
    for start in tl.range(first, (block + 1) * ROWS, COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        key = _rows(k, column, k_stride, column < tokens, DIM)
        value = _rows(v, column, v_stride, column < tokens, DIM)
        capped, t = _capped(tl.dot(query, tl.trans(key), input_precision="ieee"), scale, cap)
        seen = (column[None, :] <= row[:, None]) & (column[None, :] >= begin[:, None])
        p = tl.where(seen, tl.exp(capped - log_mass[:, None]), 0.0)
        dp = tl.dot(given, tl.trans(value), input_precision="ieee")
        ds = p * (dp - mean[:, None]) * (1 - t * t)
        total = tl.dot(ds.to(key.dtype), key, total, input_precision="ieee")
    at = row.to(tl.int64)[:, None] * (QUERIES * DIM) + head * DIM + tl.arange(0, DIM)[None, :]
    tl.store(dq + at, total * scale, mask=inside[:, None])


@triton.jit
def _key_gradients(
    q, k, v, ends, lse, dout, delta, dk, dv, tokens, q_stride, k_stride, v_stride, scale, cap,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """COLUMNS keys of one head, over all queries that see them, of each of its GROUPS heads."""
    block, head = tl.program_id(0), tl.program_id(1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < tokens
    end = tl.load(ends + column, mask=inside, other=0)
    key = _rows(k + head * DIM, column, k_stride, inside, DIM)
    value = _rows(v + head * DIM, column, v_stride, inside, DIM)
    dkey = tl.zeros((COLUMNS, DIM), tl.float32)
    dvalue = tl.zeros((COLUMNS, DIM), tl.float32)
    first, last = block * COLUMNS // ROWS * ROWS, tl.max(end, 0)
    for group in range(GROUPS):
        asking = head * GROUPS + group
        for start in tl.range(first, last, ROWS, num_stages=STAGES):
            row = start + tl.arange(0, ROWS)
            valid = row < tokens
            query = _rows(q + asking * DIM, row, q_stride, valid, DIM)
            given = _rows(dout + asking * DIM, row, QUERIES * DIM, valid, DIM)
            at = asking.to(tl.int64) * tokens + row
            log_mass = tl.load(lse + at, mask=valid, other=0.0)
            mean = tl.load(delta + at, mask=valid, other=0.0)
            capped, t = _capped(tl.dot(key, tl.trans(query), input_precision="ieee"), scale, cap)
            seen = (column[:, None] <= row[None, :]) & (row[None, :] < end[:, None])
            p = tl.where(seen, tl.exp(capped - log_mass[None, :]), 0.0)
            dvalue = tl.dot(p.to(given.dtype), given, dvalue, input_precision="ieee")
            dp = tl.dot(value, tl.trans(given), input_precision="ieee")
            ds = p * (dp - mean[None, :]) * (1 - t * t)
            dkey = tl.dot(ds.to(query.dtype), query, dkey, input_precision="ieee")
    keys: tl.constexpr = QUERIES // GROUPS
    at = column.to(tl.int64)[:, None] * (keys * DIM) + head * DIM + tl.arange(0, DIM)[None, :]
    tl.store(dk + at, dkey * scale, mask=inside[:, None])
    tl.store(dv + at, dvalue, mask=inside[:, None])


def attend(q, k, v, begins, scale: float, cap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(out (T, queries, D), lse fp32 (queries, T)). begins: int32 (T,), the first key that each query sees."""
    tokens, queries, dim = q.shape
    out = torch.empty(tokens, queries, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(queries, tokens, dtype=torch.float32, device=q.device)
    tile = _tile(FORWARD, q)
    _attend[(triton.cdiv(tokens, tile[0]), queries)](
        q, k, v, begins, out, lse, tokens, q.stride(0), k.stride(0), v.stride(0), scale, cap,
        **_sizes(q, k, tile),
    )  # fmt: skip
    return out, lse


def attend_backward(dout, q, k, v, out, lse, begins, ends, scale: float, cap: float):
    """dq, dk, dv, each (T, heads, D). ends: int32 (T,), one more than the last query that sees each key."""
    tokens, queries, dim = q.shape
    dq = torch.empty(tokens, queries, dim, dtype=q.dtype, device=q.device)
    dk = torch.empty(tokens, k.shape[1], dim, dtype=q.dtype, device=q.device)
    dv, delta = torch.empty_like(dk), torch.empty_like(lse)
    strides = (q.stride(0), k.stride(0), v.stride(0))
    tile = _tile(QUERY_GRADIENTS, q)
    _query_gradients[(triton.cdiv(tokens, tile[0]), queries)](
        q, k, v, begins, out, lse, dout, dq, delta, tokens, *strides, scale, cap, **_sizes(q, k, tile)
    )  # fmt: skip
    tile = _tile(KEY_GRADIENTS, q)
    _key_gradients[(triton.cdiv(tokens, tile[1]), k.shape[1])](
        q, k, v, ends, lse, dout, delta, dk, dv, tokens, *strides, scale, cap, **_sizes(q, k, tile)
    )  # fmt: skip
    return dq, dk, dv


def _sizes(q, k, tile: tuple[int, int, int, int]) -> dict[str, int]:
    (_, queries, dim), (rows, columns, stages, warps) = q.shape, tile
    return {
        "GROUPS": queries // k.shape[1], "QUERIES": queries, "DIM": dim, "ROWS": rows, "COLUMNS": columns,
        "STAGES": stages, "num_warps": warps,
    }  # fmt: skip


def _tile(preferred: tuple[int, int, int, int], q) -> tuple[int, int, int, int]:
    if not q.is_cuda:
        return SMALL
    return preferred if torch.cuda.get_device_capability(q.device)[0] == _HOPPER else SMALL
