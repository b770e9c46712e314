# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Packed codes to a 16-bit weight in one pass. CUDA only; equal to Quantized.dequantized bit for bit."""

import torch
import triton
import triton.language as tl

from qlora_space.lowbit.grid import Grid

_COLUMNS = 1024


def dequantize(
    grid: Grid, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Fill `out` (m, n) from the buffers of a LowBitLinear."""
    m, n = out.shape
    where = (m, triton.cdiv(n, _COLUMNS))
    _dequantize[where](
        codes, scales, zeros, out, n, codes.shape[1], zeros.shape[1], scales.shape[1], grid.group_size,
        grid.zero_start, grid.zero_step, grid.bits, grid.zero_bits, _COLUMNS,
    )  # fmt: skip
    return out


@triton.jit
def _dequantize(  # noqa: PLR0913 - a kernel
    codes, scales, zeros, out, n, code_bytes, zero_bytes, groups, group_size, zero_start, zero_step,
    BITS: tl.constexpr, ZERO_BITS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_inside = column < n
    group = column // group_size
    code = _unpacked(codes + row * code_bytes, column, n, BITS, is_inside)
    zero = _unpacked(zeros + row * zero_bytes, group, groups, ZERO_BITS, is_inside)
    scale = tl.load(scales + row * groups + group, mask=is_inside, other=0.0).to(tl.float32)
    value = (code.to(tl.float32) - (zero_start + zero_step * zero.to(tl.float32))) * scale
    tl.store(out + row * n + column, value.to(out.dtype.element_ty), mask=is_inside)


@triton.jit
def _unpacked(row, index, count, BITS: tl.constexpr, is_inside):
    """Low bits first; 3 bits are a plane of 2 and a plane of 1 (packing.py)."""
    if BITS == 3:
        low = tl.load(row + index // 4, mask=is_inside, other=0).to(tl.int32)
        high = tl.load(row + (count + 3) // 4 + index // 8, mask=is_inside, other=0).to(tl.int32)
        code = ((low >> (index % 4) * 2) & 3) | (((high >> (index % 8)) & 1) << 2)
    else:
        per_byte: tl.constexpr = 8 // BITS
        byte = tl.load(row + index // per_byte, mask=is_inside, other=0).to(tl.int32)
        code = (byte >> (index % per_byte) * BITS) & (2**BITS - 1)
    return code
