# pyright: basic, reportMissingImports=false, reportIndexIssue=false
"""What a pass of one token a row is made of, on a GPU: each part one kernel, packed weights read once for all rows.

Imported only where Triton is there. Everything falls back to what it stands for where rows are many or a size is
unknown.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from bitsandbytes.functional import get_4bit_type

from qlora_space.generate import few_rows_kernels as kernels
from qlora_space.generate.row_adapters import LowRank, Product, with_adapter

Tensor = torch.Tensor
MOST_ROWS = 32
_PARTIAL = 2**22  # fp32 values of sums that several programs share
_TILES = 2**14
_FEWEST_AT_ONCE = 16  # inputs that tensor cores multiply
_HAS_PTX = torch.version.hip is None and not triton.knobs.runtime.interpret
_PROGRAMS = 792  # wanted at once: six on each multiprocessor of an H200
_MOST_SPLITS = 16  # one program adds them up
TILE = (64, 2, 4, 2)  # outputs, groups at once, warps and stages of a program


@dataclass(frozen=True)
class Codes:
    """A packed weight (outputs, inputs) as the kernels take it."""

    outputs: int
    inputs: int
    bits: int
    group: int
    tensors: tuple[Tensor, ...]  # from `codes` to `table`, as the kernels name them
    is_nf4: bool = False
    is_nested: bool = False
    block2: int = 1
    grid: tuple[float, float] = (0.0, 0.0)  # of a zero: start and step
    bytes_a_row: tuple[int, int] = (0, 0)  # of codes and of zeros

    @property
    def parts(self) -> int:
        return 2 if self.bits == 4 else 4


@dataclass(frozen=True)
class Shared:
    """Where programs leave sums for the last of them; zeroed by whoever read it."""

    partial: Tensor
    arrived: Tensor


_shared: dict[torch.device, Shared] = {}


def shared(device: torch.device) -> Shared:
    """One for all kernels of a device: they follow each other on one stream."""
    if device not in _shared:
        _shared[device] = Shared(
            torch.empty(_PARTIAL, dtype=torch.float32, device=device),
            torch.zeros(_TILES, dtype=torch.int32, device=device),
        )
    return _shared[device]


def codes_of(linear: Any) -> Codes | None:
    """None where the kernels do not know how the weight is held."""
    is_grid = hasattr(linear, "dequantize_into")
    found = _of_grid(linear) if is_grid else _of_bitsandbytes(linear)
    is_known = found.bits in (2, 3, 4) and _is_power_of_two(found.group)
    if not is_known or found.inputs % found.group:
        return None
    return found if found.group // found.parts >= _FEWEST_AT_ONCE else None


def _of_grid(linear: Any) -> Codes:
    grid = linear.grid
    bits = 0 if linear.order is not None or grid.zero_bits != grid.bits else grid.bits
    return Codes(
        linear.out_features,
        linear.in_features,
        bits,
        grid.group_size,
        (linear.codes, linear.scales, linear.zeros, linear.zeros, linear.zeros, linear.zeros),
        grid=(grid.zero_start, grid.zero_step),
        bytes_a_row=(linear.codes.shape[1], linear.zeros.shape[1]),
    )


def _of_bitsandbytes(linear: Any) -> Codes:
    weight, state = linear.weight.data, linear.weight.quant_state
    outputs, inputs = state.shape
    table = get_4bit_type(state.quant_type, device=weight.device).float()
    nested = (
        (state.state2.code, state.state2.absmax, state.offset) if state.nested else (table,) * 3
    )
    return Codes(
        outputs,
        inputs,
        4 if state.quant_type == "nf4" else 0,
        state.blocksize,
        (weight, state.absmax, *nested, table),
        is_nf4=True,
        is_nested=state.nested,
        block2=state.state2.blocksize if state.nested else 1,
        bytes_a_row=(inputs // 2, 0),
    )


def product_of(linear: Any) -> Product | None:
    """W x + bias of a packed linear and of an adapter on it; None where the kernels do not know how it is held."""
    codes = codes_of(linear)
    if codes is None:
        return None
    many = with_adapter(linear.forward)

    def product(x: Tensor, adapter: LowRank | None = None) -> Tensor:
        rows = x.numel() // codes.inputs
        if rows > MOST_ROWS or x.element_size() != 2:
            return many(x, adapter)
        out = x.new_empty(*x.shape[:-1], codes.outputs)
        x = x.contiguous().view(rows, -1)
        multiply(codes, x, out.view(rows, -1), linear.bias, adapter and adapter.of_rows(rows))
        return out

    return product


def multiply(
    codes: Codes, x: Tensor, out: Tensor, bias: Tensor | None, adapter: LowRank | None
) -> None:
    """out (R, outputs) = x (R, inputs) W^T + bias + what the adapter adds, for at most 32 rows of 16 bits."""
    rows, ranks = len(x), 0 if adapter is None else len(adapter.down)
    spread = torch.empty_like(x, dtype=torch.float16)
    factor = torch.empty(rows, dtype=torch.float32, device=x.device)
    low = x if adapter is None else x.new_empty(rows, ranks)
    down, strength, up = (
        (x, x, x) if adapter is None else (adapter.down, adapter.strength, adapter.up)
    )
    kernels.prepare[(1 + ranks, rows)](
        x, x.stride(0), down, strength, low, spread, factor, codes.inputs, ranks, PARTS=codes.parts, BLOCK=2048,
        num_warps=4,
    )  # fmt: skip
    outputs, groups, warps, stages = TILE
    tiles = triton.cdiv(codes.outputs, outputs)
    steps = triton.cdiv(codes.inputs // codes.group, groups)
    padded = 16 if rows <= 16 else 32
    most = _PARTIAL // (tiles * outputs * padded) if tiles <= _TILES else 1
    in_each = triton.cdiv(steps, max(1, min(_PROGRAMS // tiles, _MOST_SPLITS, steps, most)))
    at = shared(x.device)
    kernels.product[(tiles, splits := triton.cdiv(steps, in_each))](
        spread, factor, out, codes.outputs, *codes.tensors, *codes.grid, *codes.bytes_a_row,
        x if bias is None else bias, low, up, at.partial, at.arrived, rows, codes.inputs, ranks, splits, in_each,
        R=padded, BITS=codes.bits, NF4=codes.is_nf4, NESTED=codes.is_nested,
        BLOCK2=codes.block2, GROUP=codes.group, BIAS=bias is not None, ROWS=outputs, GROUPS=groups,
        RANKS=max(16, triton.next_power_of_2(ranks)) if ranks else 0, ASM=_HAS_PTX,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (rows, heads, 1, D) turned by cos and sin (rows, 1, D)."""
    rows, queries, _, dim = q.shape
    keys = k.shape[1]
    out = q.new_empty(rows, queries + keys, 1, dim)
    kernels.rotate[(rows, queries + keys)](
        q, k, cos, sin, out, q.stride(0), q.stride(1), k.stride(0), k.stride(1), QUERIES=queries, KEYS=keys,
        DIM=dim, SIZE=triton.next_power_of_2(dim // 2), num_warps=1,
    )  # fmt: skip
    return out[:, :queries], out[:, queries:]


def keep(key: Tensor, value: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> None:
    """Write key and value (rows, heads, 1, D) of one token into keys and values (slots, heads, length, D)."""
    rows, heads, _, dim = key.shape
    kernels.keep[(rows, heads)](
        key, value, keys, values, positions, key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        *keys.stride()[:3], DIM=dim, SIZE=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """(rows, 1, heads, D) from one query a row and head, over what mask (rows, 1, 1, length) shows."""
    rows, queries, _, dim = q.shape
    heads, length = keys.shape[1], keys.shape[2]
    block, size = 64, triton.next_power_of_2(dim)
    padded = max(16, triton.next_power_of_2(queries // heads))
    at = shared(q.device)
    most = max(1, _PARTIAL // (rows * heads * padded * (size + 2)))
    splits = max(1, min(triton.cdiv(length, block), _PROGRAMS // (rows * heads), most))
    out = q.new_empty(rows, 1, queries, dim)
    kernels.attend[(rows * heads, splits)](
        q, keys, values, mask, out, at.partial, at.arrived, scale, q.stride(0), q.stride(1), *keys.stride()[:3],
        mask.stride(0), length, KEYS=heads, SHARED=queries // heads, PADDED=padded, DIM=dim, SIZE=size, BLOCK=block,
        SPLITS=splits, num_warps=4,
    )  # fmt: skip
    return out


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
