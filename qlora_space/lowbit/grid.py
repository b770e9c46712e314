"""Quantize a weight matrix to codes, scales and zeros: uniform levels per group, range chosen by squared error.

A group is `group_size` neighbours in a row. A weight is scale * (code - zero). At 2 bits an integer zero wastes a level
on one side of weights that are symmetric around 0, so zeros are multiples of a half around the middle of the codes.
"""

from dataclasses import dataclass

import torch

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.packing import pack, unpack

_SHRINKS = 14  # ranges that are tried, from 0.3 of the whole one to all of it
_REFINEMENTS = 2
SMALLEST_SCALE = 2**-24  # that fp16 holds
WEIGHTS_AT_ONCE = {"cpu": 2**22, "cuda": 2**25}  # bounds the memory of the search


@dataclass(frozen=True)
class Grid:
    """How one matrix is quantized. A group's zero is zero_start + zero_step * code, with a code of `zero_bits` bits."""

    bits: int
    group_size: int
    zero_bits: int
    zero_start: float
    zero_step: float

    @property
    def zero_top(self) -> int:
        """The largest code of a zero: one beyond the codes of weights would waste all levels of a side."""
        inside = int((2**self.bits - 1 - self.zero_start) / self.zero_step)
        return min(2**self.zero_bits - 1, inside)

    @property
    def bits_per_weight(self) -> float:
        """Codes, and for each group a 16-bit scale and a zero."""
        return self.bits + (16 + self.zero_bits) / self.group_size


def grid_of(bits: int, group_size: int) -> Grid:
    """The grid of bases that are quantized here: the zero has as many bits as a weight, in steps of a half.

    2.28 bits per weight at 2 bits in groups of 64.
    """
    middle = (2**bits - 1) / 2
    return Grid(bits, group_size, zero_bits=bits, zero_start=middle / 2, zero_step=0.5)


def whole_grid(bits: int, group_size: int) -> Grid:
    """The grid of GPTQ's format: zeros are whole numbers from 1 on, since its files store zeros minus one."""
    return Grid(bits, group_size, zero_bits=bits, zero_start=1.0, zero_step=1.0)


@dataclass(frozen=True)
class Quantized:
    """Unpacked: codes (m, n) uint8, scales (m, n / group_size) fp16, zeros (m, n / group_size) uint8."""

    grid: Grid
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def packed(self) -> dict[str, torch.Tensor]:
        """The buffers of a LowBitLinear."""
        return {
            "codes": pack(self.codes, self.grid.bits),
            "scales": self.scales,
            "zeros": pack(self.zeros, self.grid.zero_bits),
        }

    def dequantized(self) -> torch.Tensor:
        """(m, n) fp32."""
        return dequantized(self.grid, self.codes, self.scales, self.zeros)


def dequantized(
    grid: Grid, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """(m, n) fp32 from unpacked codes."""
    zero = zeros_of(grid, zeros)
    grouped = codes.view(*zeros.shape, grid.group_size).float() - zero[..., None]
    return grouped.mul_(scales.float()[..., None]).view(codes.shape)


def zeros_of(grid: Grid, codes: torch.Tensor) -> torch.Tensor:
    """fp32, for the codes of zeros of any shape."""
    return grid.zero_start + grid.zero_step * codes.float()


def unpacked(
    grid: Grid, columns: int, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> Quantized:
    """From the buffers of a LowBitLinear."""
    return Quantized(
        grid,
        unpack(codes, columns, grid.bits),
        scales,
        unpack(zeros, scales.shape[1], grid.zero_bits),
    )


def quantize(weight: torch.Tensor, grid: Grid, importance: torch.Tensor | None = None) -> Quantized:
    """Round a weight (m, n) of any float dtype to the nearest codes, in the ranges of least squared error.

    importance: (n) fp32, what a squared error counts in each column, such as the mean square of its input. Raises
    ModelError where n is not a multiple of the group size.
    """
    m, n = weight.shape
    if n % grid.group_size:
        raise ModelError(
            f"A layer has {n} inputs, which groups of {grid.group_size} do not divide.",
            "Choose a smaller group_size.",
        )
    rows = max(1, WEIGHTS_AT_ONCE[weight.device.type] // n)
    scales = weight.new_empty((m, n // grid.group_size), dtype=torch.float16)
    zeros = torch.empty_like(scales, dtype=torch.uint8)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    counts = None if importance is None else _in_groups(importance, grid.group_size)
    for start in range(0, m, rows):
        part = slice(start, start + rows)
        grouped = weight[part].float().view(-1, n // grid.group_size, grid.group_size)
        scales[part], zeros[part] = _search_ranges(grouped, grid, counts)
        codes[part] = _codes(grouped, scales[part], zeros[part], grid).view(-1, n)
    return Quantized(grid, codes, scales, zeros)


def _in_groups(importance: torch.Tensor, group_size: int) -> torch.Tensor:
    """(groups, size), the mean of each group 1: groups do not meet in the search."""
    grouped = importance.view(-1, group_size)
    return grouped / grouped.mean(-1, keepdim=True).clamp_min(1e-30)


def _codes(
    grouped: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Nearest codes of (m, groups, size) for given ranges."""
    return _nearest(grouped, scales.float(), zeros_of(grid, zeros), 2**grid.bits - 1).to(
        torch.uint8
    )


def _nearest(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: int) -> torch.Tensor:
    return (w / scale[..., None]).add_(zero[..., None]).round_().clamp_(0, top)


def _search_ranges(
    w: torch.Tensor, grid: Grid, counts: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (fp16) and zero code per group of least squared error, in which each weight counts as much as `counts`
    (groups, size); w is (m, groups, size) fp32.

    The range of the group is shrunk about its middle, with the zero that keeps the middle in the middle of the
    codes and its two neighbours: within 0.1 % of the error of trying every zero, in an eighth of the time at 4 bits.
    """
    if counts is not None and w.is_cuda:
        from qlora_space.lowbit import range_kernels

        return range_kernels.search_ranges(w, grid, counts)
    error = torch.full(w.shape[:2], torch.inf, dtype=torch.float64, device=w.device)
    best = (
        error,
        torch.ones_like(error, dtype=torch.float32),
        torch.zeros_like(error, dtype=torch.uint8),
    )
    top, high, low = 2**grid.bits - 1, w.amax(-1), -w.amin(-1)
    for shrink in torch.linspace(0.3, 1.0, _SHRINKS).tolist():
        step = ((high + low) / top * shrink).clamp_min(SMALLEST_SCALE)
        middle = top / 2 - (high - low) / 2 / step
        nearest = ((middle - grid.zero_start) / grid.zero_step).round_()
        for offset in (0, -1, 1):
            code = (nearest + offset).clamp_(0, grid.zero_top)
            zero = grid.zero_start + grid.zero_step * code
            reach = torch.maximum(high / (top - zero).clamp_min(0.5), low / zero.clamp_min(0.5))
            _keep_better(w, reach * shrink, zero, code.to(torch.uint8), top, counts, best)
    for _ in range(_REFINEMENTS):  # given the codes, the best scale is a regression
        zero = zeros_of(grid, best[2])
        level = _nearest(w, best[1], zero, top) - zero[..., None]
        counted = level if counts is None else level * counts
        product, energy = (x.mul_(counted).sum(-1, dtype=torch.float64) for x in (w.clone(), level))
        scale = (product / energy.clamp_min(1e-12)).float()
        _keep_better(w, scale, zero, best[2], top, counts, best)
    return best[1].half(), best[2]


def _keep_better(
    w: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    code: torch.Tensor,
    top: int,
    counts: torch.Tensor | None,
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Measure the error with the scale as it will be stored, and overwrite `best` where it is smaller.

    Summed in fp64 where all weights count alike, so that every device comes to the same codes: an adapter that is
    published without its base names a recipe, not codes.
    """
    scale = scale.half().float().clamp_min(SMALLEST_SCALE)
    level = _nearest(w, scale, zero, top).sub_(zero[..., None]).mul_(scale[..., None])
    squared = level.sub_(w).square_()
    squared = squared if counts is None else squared.mul_(counts)
    error = squared.sum(-1, dtype=torch.float64 if counts is None else torch.float32)
    is_better = error < best[0]
    best[0].copy_(torch.where(is_better, error, best[0]))
    best[1].copy_(torch.where(is_better, scale, best[1]))
    best[2].copy_(torch.where(is_better, code, best[2]))
