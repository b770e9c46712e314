# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Dequantize packed codes in one pass. CUDA only; bit for bit equal to Quantized.dequantized."""

import torch
import triton
import triton.language as tl

from qlora_space.lowbit.grid import Grid

_WIDEST_BLOCK = 128
TILE = (4096, 4)  # weights and warps of a program; `benchmarks/tile_sizes.py` compares


def block_size(group_size: int) -> int:
    """Weights in a block: the largest power of two that divides a group, so that a block has one scale."""
    return min(_WIDEST_BLOCK, group_size & -group_size)


def dequantize(
    grid: Grid, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, out: torch.Tensor
) -> None:
    """Fill `out` (m, n) from the buffers of a LowBitLinear; the group size is a multiple of 8."""
    block, (weights, warps) = block_size(grid.group_size), TILE
    blocks, tile = out.numel() // block, weights // block
    _dequantize[(triton.cdiv(blocks, tile),)](
        codes, scales, zeros, out, blocks, out.shape[1] // block, codes.shape[1], zeros.shape[1],
        out.stride(0), grid.zero_start, grid.zero_step, BITS=grid.bits, ZERO_BITS=grid.zero_bits,
        BLOCK=block, PER_GROUP=grid.group_size // block, TILE=tile, num_warps=warps,
    )  # fmt: skip


@triton.jit
def _dequantize(  # noqa: PLR0913 - a kernel
    codes, scales, zeros, out, blocks, per_row, code_bytes, zero_bytes, out_stride, zero_start, zero_step,
    BITS: tl.constexpr, ZERO_BITS: tl.constexpr, BLOCK: tl.constexpr, PER_GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """TILE blocks of BLOCK weights: one scale and one zero for each block, one byte for several weights."""
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = block < blocks
    row, in_row = (block // per_row).to(tl.int64), block % per_row
    group, groups = in_row // PER_GROUP, per_row // PER_GROUP
    scale = tl.load(scales + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    zero = zero_code(zeros + row * zero_bytes, group, groups, ZERO_BITS, inside)
    zero = zero_start + zero_step * zero.to(tl.float32)
    code = _codes(codes + row * code_bytes, in_row, per_row, BITS, BLOCK, inside)
    value = (code.to(tl.float32) - zero[:, None]) * scale[:, None]
    to = (row * out_stride + in_row * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    tl.store(out + to, value.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _codes(row, block, per_row, BITS: tl.constexpr, BLOCK: tl.constexpr, inside):
    """(TILE, BLOCK) from whole bytes, low bits first; 3 bits are a plane of 2 and a plane of 1 (packing.py)."""
    quarter: tl.constexpr = BLOCK // 4
    if BITS == 8:
        code = _bytes(row, block, BLOCK, inside)
    elif BITS == 4:
        pair = _bytes(row, block, BLOCK // 2, inside)
        code = tl.interleave(pair & 15, pair >> 4)
    else:
        low = _bytes(row, block, quarter, inside)
        c0, c1, c2, c3 = low & 3, (low >> 2) & 3, (low >> 4) & 3, low >> 6
        if BITS == 3:
            at = (block * (BLOCK // 8))[:, None] + tl.arange(0, quarter)[None, :] // 2
            from_byte = row[:, None] + per_row * quarter + at
            high = tl.load(from_byte, mask=inside[:, None], other=0).to(tl.int32)
            high = high >> (tl.arange(0, quarter) % 2 * 4)[None, :]
            c0, c1 = c0 | (high & 1) << 2, c1 | (high >> 1 & 1) << 2
            c2, c3 = c2 | (high >> 2 & 1) << 2, c3 | (high >> 3 & 1) << 2
        code = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    return code


@triton.jit
def _bytes(row, block, COUNT: tl.constexpr, inside):
    at = (block * COUNT)[:, None] + tl.arange(0, COUNT)[None, :]
    return tl.load(row[:, None] + at, mask=inside[:, None], other=0).to(tl.int32)


@triton.jit
def zero_code(row, group, groups, BITS: tl.constexpr, inside):
    """One for each block; packed as codes are."""
    if BITS == 3:
        low = tl.load(row + group // 4, mask=inside, other=0).to(tl.int32)
        high = tl.load(row + (groups + 3) // 4 + group // 8, mask=inside, other=0).to(tl.int32)
        zero = ((low >> group % 4 * 2) & 3) | (((high >> (group % 8)) & 1) << 2)
    else:
        per_byte: tl.constexpr = 8 // BITS
        byte = tl.load(row + group // per_byte, mask=inside, other=0).to(tl.int32)
        zero = (byte >> group % per_byte * BITS) & (2**BITS - 1)
    return zero
