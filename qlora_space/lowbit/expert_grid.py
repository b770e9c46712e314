"""Experts of a mixture in the codes of grid.py: rounded to the nearest, without a repair.

The repair of a linear needs the covariance of its inputs, and an expert sees few of the calibration's tokens; adapters
on experts start at zero, and what the experts lose is in the quality that is measured before training.
"""

import torch
from torch import nn

from qlora_space.experts.module import PackedExperts, make_packable, packed_experts
from qlora_space.experts.routing import Routing
from qlora_space.experts.stacks import empty_part
from qlora_space.lowbit.grid import Grid, grid_of, quantize, unpacked
from qlora_space.lowbit.packing import packed_width


class GridStack(nn.Module):
    """Matrices (E, N, K) of all experts of a layer. Buffers as those of a LowBitLinear of E N rows."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, shape: tuple[int, ...], grid: Grid, device: str | None = None) -> None:
        super().__init__()
        experts, rows, columns = shape
        self.shape, self.grid = (experts, rows, columns), grid
        groups = columns // grid.group_size
        sizes = {
            "codes": (packed_width(columns, grid.bits), torch.uint8),
            "scales": (groups, torch.float16),
            "zeros": (packed_width(groups, grid.zero_bits), torch.uint8),
        }
        for name, (width, dtype) in sizes.items():
            buffer = torch.zeros(experts * rows, width, dtype=dtype, device=device)
            self.register_buffer(name, buffer)

    @classmethod
    def from_weight(cls, weight: torch.Tensor, grid: Grid) -> "GridStack":
        """Pack (E, N, K) of any float dtype, on its device. Raises ModelError."""
        stack = cls(tuple(weight.shape), grid, weight.device)  # type: ignore[arg-type]
        rows = weight.shape[1]
        for expert, matrix in enumerate(weight):
            part = slice(expert * rows, (expert + 1) * rows)
            for name, buffer in quantize(matrix, grid).packed().items():
                getattr(stack, name)[part] = buffer
        return stack

    def matrices(
        self, routing: Routing, dtype: torch.dtype, part: int = 0, parts: int = 1
    ) -> torch.Tensor:
        """(E, N / parts, K): one of `parts` equal parts of each matrix."""
        out = empty_part(self.shape, parts, dtype, self.codes.device)
        experts, rows, columns = out.shape
        codes, scales, zeros = (
            buffer.view(experts, parts, rows, -1)[:, part].reshape(experts * rows, -1)
            for buffer in (self.codes, self.scales, self.zeros)
        )
        if out.is_cuda and self.grid.group_size % 8 == 0:
            from qlora_space.lowbit import kernels

            kernels.dequantize(self.grid, codes, scales, zeros, out.view(-1, columns))
        else:
            found = unpacked(self.grid, columns, codes, scales, zeros)
            out.copy_(found.dequantized().view(out.shape))
        return out


@torch.no_grad()
def pack_experts(block: nn.Module, bits: int, group_size: int) -> None:
    """Pack all experts of a block whose 16-bit weights are in place. Raises ModelError."""
    make_packable(block)
    grid = grid_of(bits, group_size)
    for _, experts in packed_experts(block):
        for name in experts.names:
            weight = getattr(experts, name)
            weight = weight.mT.contiguous() if experts.is_transposed else weight
            experts.put(name, GridStack.from_weight(weight, grid))
        experts.show(None)


def expect_packed(experts: PackedExperts, grids: dict[str, Grid]) -> None:
    """Before packed weights are read: have empty stacks of these grids, by parameter, on the meta device."""
    for name, grid in grids.items():
        number, first, second = experts.shapes[name]
        shape = (number, second, first) if experts.is_transposed else (number, first, second)
        experts.put(name, GridStack(shape, grid, "meta"))
    experts.show(None)


def grids_of(experts: PackedExperts) -> dict[str, Grid]:
    """By parameter, of experts that pack_experts has packed."""
    stacks = {name: experts.stack(name) for name in experts.names}
    return {name: stack.grid for name, stack in stacks.items() if isinstance(stack, GridStack)}
