"""GPTQ (arXiv 2210.17323): round column by column, and let the later columns make up for each rounding error."""

import torch

from qlora_space.lowbit.grid import Grid, Quantized, quantize

_COLUMNS_AT_ONCE = 128


def gptq(weight: torch.Tensor, covariance: torch.Tensor, grid: Grid) -> Quantized:
    """Codes for a weight (m, n) under the damped covariance (n, n) of its inputs; ranges as in `quantize`.

    Columns are rounded in the order of their energy (desc_act) but keep their groups, so no index of groups is stored.
    """
    nearest = quantize(weight, grid)
    order = covariance.diagonal().argsort(descending=True)
    factor = _inverse_factor(covariance[order][:, order])
    group = order // grid.group_size
    scale = nearest.scales.float()[:, group]
    zero = grid.zero_start + grid.zero_step * nearest.zeros.float()[:, group]
    w = weight.float()[:, order].clone()
    codes = torch.empty_like(w, dtype=torch.uint8)
    for start in range(0, w.shape[1], _COLUMNS_AT_ONCE):
        end = min(start + _COLUMNS_AT_ONCE, w.shape[1])
        errors = w.new_empty((w.shape[0], end - start))
        for i in range(start, end):
            code = (w[:, i] / scale[:, i] + zero[:, i]).round_().clamp_(0, 2**grid.bits - 1)
            codes[:, i] = code.to(torch.uint8)
            error = (w[:, i] - (code - zero[:, i]) * scale[:, i]) / factor[i, i]
            w[:, i + 1 : end].addr_(error, factor[i, i + 1 : end], alpha=-1)
            errors[:, i - start] = error
        w[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    in_place = torch.empty_like(codes)
    in_place[:, order] = codes
    return Quantized(grid, in_place, nearest.scales, nearest.zeros)


def _inverse_factor(covariance: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse, fp64 inside, fp32 out."""
    lower = torch.linalg.cholesky(covariance.double())
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
