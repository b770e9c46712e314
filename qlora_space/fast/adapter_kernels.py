# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels in which the adapters' small products ride along: tiles of a few columns of rank, in fp32.

A product with a rank of 16 is bound by memory: alone it reads or writes a whole (T, N) tensor for little arithmetic.
Inside a kernel that has the tensor's tile at hand it costs a `tl.dot` on 16 columns.
T tokens, I intermediate, N outputs, R rank (of all parts together); see kernels.py.
"""

from collections.abc import Callable, Sequence

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

# Rows and columns of a tile, tiles of a program, its warps, tiles that are on their way from memory or in use.
# Chosen by `benchmarks/tile_sizes.py`.
GATED, GATED_BACKWARD = (64, 64, 16, 4, 2), (64, 64, 16, 4, 3)
_LARGE_RANK = 64  # of gate and up together: above, three tiles are more than the 99 KB of shared memory of most GPUs


@triton.jit
def _rank_rows(matrix, row, tokens, RANK: tl.constexpr, R: tl.constexpr):
    """(rows, R) of a (tokens, RANK) matrix, filled with zeros."""
    r = tl.arange(0, R)
    inside = (row[:, None] < tokens) & (r[None, :] < RANK)
    return tl.load(matrix + row[:, None] * RANK + r[None, :], mask=inside, other=0.0)


@triton.jit
def _rank_columns(matrix, column, columns, by_column, by_rank, RANK: tl.constexpr, R: tl.constexpr):
    """(R, columns) of a matrix that holds RANK numbers per column, filled with zeros."""
    r = tl.arange(0, R)
    inside = (column[None, :] < columns) & (r[:, None] < RANK)
    at = column[None, :].to(tl.int64) * by_column + r[:, None] * by_rank
    return tl.load(matrix + at, mask=inside, other=0.0)


@triton.jit
def _expand(
    h, b, bias, added, out, tokens, columns, b_row, b_column,
    RANK: tl.constexpr, R: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of h (tokens, RANK) times the transpose of b (columns, RANK); R is RANK rounded up."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    left = _rank_rows(h, row, tokens, RANK, R)
    right = _rank_columns(b, column, columns, b_row, b_column, RANK, R)
    value = tl.dot(left, right)
    if BIAS:
        value += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * columns + column[None, :]
    inside = (row[:, None] < tokens) & (column[None, :] < columns)
    if ADD:
        value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    if KEEP:
        value += tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value, mask=inside)


def expand(h, b, bias=None, added=None, to=None) -> torch.Tensor:
    """h (T, R) times bᵀ (R, N), plus bias (N,) and added (T, N), in one pass over the output; `to` is added to."""
    tokens, rank = h.shape
    columns = b.shape[0]
    out = torch.empty(tokens, columns, dtype=h.dtype, device=h.device) if to is None else to
    rows, width = 64, 128
    _expand[(triton.cdiv(tokens, rows), triton.cdiv(columns, width))](
        h, b, bias, added, out, tokens, columns, b.stride(0), b.stride(1),
        RANK=rank, R=_rank(rank), BIAS=bias is not None, ADD=added is not None, KEEP=to is not None,
        ROWS=rows, COLUMNS=width, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _activation(gate, GELU: tl.constexpr):
    """The value and its derivative."""
    if GELU:  # tanh form
        inner = 1.5957691216057308 * gate * (1 + 0.044715 * gate * gate)  # 2 sqrt(2 / pi)
        s = tl.sigmoid(inner)
        slope = 1.5957691216057308 * (1 + 3 * 0.044715 * gate * gate)
        return gate * s, s + gate * s * (1 - s) * slope
    s = tl.sigmoid(gate)
    return gate * s, s + gate * s * (1 - s)


@triton.jit
def _gated(
    gate_up, h, b, a, g, given, out, low, tokens, width,
    GELU: tl.constexpr, BACKWARD: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr,
    DOWN_RANK: tl.constexpr, DOWN_R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCKS tiles of some rows, one after the other; the adapters of gate_up (h, b) and down (a, g) on the way.

    Forward: out = act(gate) * up, low = out aᵀ. Backward: given += g a; gate_up becomes its gradient, given
    becomes act(gate) * up, low = d(gate_up) b. `low` has a slice for each program along the columns.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    low_rank: tl.constexpr = RANK if BACKWARD else DOWN_RANK
    low_r: tl.constexpr = R if BACKWARD else DOWN_R
    total = tl.zeros((ROWS, low_r), tl.float32)
    left = _rank_rows(h, row, tokens, RANK, R)
    if BACKWARD:
        down_left = _rank_rows(g, row, tokens, DOWN_RANK, DOWN_R)
    for i in tl.range(BLOCKS, num_stages=STAGES):
        column = (tl.program_id(1) * BLOCKS + i) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row[:, None] < tokens) & (column[None, :] < width)
        at = gate_up + row[:, None] * (2 * width) + column[None, :]
        b_gate = _rank_columns(b, column, width, RANK, 1, RANK, R)
        b_up = _rank_columns(b + width.to(tl.int64) * RANK, column, width, RANK, 1, RANK, R)
        a_down = _rank_columns(a, column, width, 1, width, DOWN_RANK, DOWN_R)
        gate = tl.dot(left, b_gate, tl.load(at, mask=inside, other=0.0).to(tl.float32))
        up = tl.dot(left, b_up, tl.load(at + width, mask=inside, other=0.0).to(tl.float32))
        value, slope = _activation(gate, GELU)
        acted = (value * up).to(out.dtype.element_ty)
        to = row[:, None] * width + column[None, :]
        if BACKWARD:
            grad = tl.load(given + to, mask=inside, other=0.0).to(tl.float32)
            grad = tl.dot(down_left, a_down, grad)
            d_gate = (grad * up * slope).to(gate_up.dtype.element_ty)
            d_up = (grad * value).to(gate_up.dtype.element_ty)
            tl.store(at, d_gate, mask=inside)
            tl.store(at + width, d_up, mask=inside)
            total = tl.dot(d_gate, tl.trans(b_gate), total)
            total = tl.dot(d_up, tl.trans(b_up), total)
        else:
            total = tl.dot(acted, tl.trans(a_down), total)
        tl.store(out + to, acted, mask=inside)
    r = tl.arange(0, low_r)
    at_low = (tl.program_id(1).to(tl.int64) * tokens + row[:, None]) * low_rank + r[None, :]
    tl.store(low + at_low, total, mask=(row[:, None] < tokens) & (r[None, :] < low_rank))


def gated(gate_up, h, b, a, is_gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """act(gate) * up, (T, 2 I) -> (T, I), with the adapter's part h bᵀ of gate and up; and its product with aᵀ.

    h: (T, R), b: (2 I, R), a: (R', I). The second result is (T, R'), in the dtype of the first.
    """
    width = gate_up.shape[1] // 2
    out = torch.empty(gate_up.shape[0], width, dtype=gate_up.dtype, device=gate_up.device)
    low = _run_gated(gate_up, h, b, a, h, gate_up, out, is_gelu, is_backward=False)
    return out, low


def gated_backward(gate_up, h, b, a, g, grad, is_gelu: bool) -> torch.Tensor:
    """grad (T, I) lacks the adapter's part g a. In place: gate_up becomes its gradient, grad becomes act(gate) * up.

    Returns the gradient times b: (T, R).
    """
    return _run_gated(gate_up, h, b, a, g, grad, grad, is_gelu, is_backward=True)


def _run_gated(
    gate_up, h, b, a, g, given, out, is_gelu: bool, *, is_backward: bool
) -> torch.Tensor:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    rank, down_rank = b.shape[1], a.shape[0]
    rows, columns, blocks, warps, stages = GATED_BACKWARD if is_backward else GATED
    stages = min(stages, 2) if rank > _LARGE_RANK else stages
    programs = triton.cdiv(width, columns * blocks)
    low = torch.empty(
        programs, tokens, rank if is_backward else down_rank, dtype=torch.float32, device=b.device
    )
    _gated[(triton.cdiv(tokens, rows), programs)](
        gate_up, h, b, a, g, given, out, low, tokens, width,
        GELU=is_gelu, BACKWARD=is_backward, RANK=rank, R=_rank(rank), DOWN_RANK=down_rank, DOWN_R=_rank(down_rank),
        ROWS=rows, COLUMNS=columns, BLOCKS=blocks, STAGES=stages, num_warps=warps,
    )  # fmt: skip
    return _sum(low, b.dtype)


@triton.jit
def _sum_slices(slices, out, size, COUNT: tl.constexpr, SIZE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for i in range(COUNT):
        total += tl.load(slices + i * size + at, mask=at < size, other=0.0)
    tl.store(out + at, total, mask=at < size)


def _sum(slices, dtype) -> torch.Tensor:
    """fp32 (count, T, R) over the first dimension, rounded once."""
    out = torch.empty(slices.shape[1:], dtype=dtype, device=slices.device)
    size = out.numel()
    _sum_slices[(triton.cdiv(size, 512),)](
        slices, out, size, COUNT=slices.shape[0], SIZE=512, num_warps=4
    )
    return out


@triton.jit
def _copy_scaled(table, scales, like, SIZE: tl.constexpr):
    """A line of the table: where from, where to, how many numbers, in rows of how many, how far apart there."""
    line = table + tl.program_id(0) * 5
    source = tl.load(line).to(tl.pointer_type(tl.float32))
    target = tl.load(line + 1).to(tl.pointer_type(like.dtype.element_ty))
    count, columns = tl.load(line + 2).to(tl.int32), tl.load(line + 3).to(tl.int32)
    stride, scale = tl.load(line + 4).to(tl.int32), tl.load(scales + tl.program_id(0))
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    value = tl.load(source + at, mask=at < count, other=0.0) * scale
    tl.store(target + at // columns * stride + at % columns, value, mask=at < count)


def scaled_copies(
    sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], scales: Sequence[float]
) -> Callable[[], None]:
    """A function that sets target = scale * source for all pairs, in one launch.

    sources: contiguous fp32 matrices, read where they lie when it is called; targets: blocks of wider matrices, which
    stay where they are. It raises ValueError for other sources.
    """
    like, size = targets[0], 2048
    factors = torch.tensor(scales, dtype=torch.float32, device=like.device)
    grid = (len(targets), triton.cdiv(max(a.numel() for a in sources), size))
    addresses: list[int] = []
    table: torch.Tensor | None = None

    def copy() -> None:
        nonlocal table, addresses
        now = [a.data_ptr() for a in sources]
        if now != addresses:
            table, addresses = _table(sources, targets), now
        _copy_scaled[grid](table, factors, like, SIZE=size, num_warps=4)

    return copy


def _table(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    if not all(a.is_contiguous() and a.dtype is torch.float32 for a in sources):
        raise ValueError("only contiguous fp32 matrices are copied")
    lines = [
        (a.data_ptr(), b.data_ptr(), a.numel(), a.shape[1], b.stride(0))
        for a, b in zip(sources, targets, strict=True)
    ]
    return torch.tensor(lines, device=targets[0].device)


def _rank(rank: int) -> int:
    """Rounded up to what a product of tiles takes."""
    return max(16, triton.next_power_of_2(rank))
