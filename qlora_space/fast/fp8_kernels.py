# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels that round to FP8; see kernels.py."""

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore

from qlora_space.fast.formulas import FP8_LARGEST


@triton.jit
def _quantize_rows(x, out, scales, width, LARGEST: tl.constexpr, SIZE: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(value), 0) / LARGEST
    scale = tl.where(scale > 0, scale, 1.0)
    tl.store(scales + row, scale)
    tl.store(out + row * width + column, (value / scale).to(out.dtype.element_ty), mask=inside)


def quantize_rows(x) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / scale in float8_e4m3fn, fp32 scale (T, 1)), so that the largest of each row becomes 448."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    size = triton.next_power_of_2(x.shape[1])
    _quantize_rows[(x.shape[0],)](
        x,
        out,
        scales,
        x.shape[1],
        LARGEST=FP8_LARGEST,
        SIZE=size,
        num_warps=min(max(size // 512, 1), 16),
    )
    return out, scales


@triton.jit
def _to_fp8(weight, scale, out, rows, columns, TRANSPOSED: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    column = tl.program_id(1).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    value = tl.load(weight + row[:, None] * columns + column[None, :], mask=inside, other=0.0)
    value = (value.to(tl.float32) / tl.load(scale)).to(out.dtype.element_ty)
    if TRANSPOSED:
        to = column[:, None] * rows + row[None, :]
        inside = (column[:, None] < columns) & (row[None, :] < rows)
        tl.store(out + to, tl.trans(value), mask=inside)
    else:
        tl.store(out + row[:, None] * columns + column[None, :], value, mask=inside)


def to_fp8(weight, scale, *, is_transposed: bool) -> torch.Tensor:
    """weight / scale in float8_e4m3fn: (N, K) to (N, K), or to (K, N)."""
    rows, columns = weight.shape
    shape = (columns, rows) if is_transposed else (rows, columns)
    out = torch.empty(shape, dtype=torch.float8_e4m3fn, device=weight.device)
    size = 64
    _to_fp8[(triton.cdiv(rows, size), triton.cdiv(columns, size))](
        weight, scale, out, rows, columns, TRANSPOSED=is_transposed, SIZE=size, num_warps=4
    )
    return out
