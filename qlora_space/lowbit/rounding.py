"""Quantize a weight by the inputs that it meets: ranges, codes and scales of least squared output error.

The mean square of (W - Q) x, for inputs x of covariance C, is tr(D C D^T) with D = W - Q. Ranges are searched with C's
diagonal alone; codes and scales take turns with all of it. Codes come from sweeps over the columns: column i is
rounded, and the targets of other columns move by its error times row i of a `feedback` matrix. In GPTQ (arXiv
2210.17323) the columns that are left make up for the error; in the descent, each column gets the best code beside all
others' codes.

Rows of a weight do not meet, so columns come first here: (n, m) for n inputs and m outputs.
"""

from dataclasses import dataclass, replace

import torch

from qlora_space.lowbit.grid import (
    SMALLEST_SCALE,
    WEIGHTS_AT_ONCE,
    Grid,
    Quantized,
    quantize,
    zeros_of,
)

_ROUNDS = 2  # of scales and codes after GPTQ; a third gains 1 % of the error
_COLUMNS_AT_ONCE = {"cpu": 32, "cuda": 128}
_RIDGE, _FARTHEST = 1e-4, 3.0


@dataclass(frozen=True)
class Inputs:
    """What is to be known of a linear's n inputs; linears with the same input share it.

    order: (n) columns from the most energy to the least (GPTQ's desc_act); the matrices, fp32, are in that order.
    importance: (n) fp32 in the columns' own order, the mean square of each. covariance: (n, n), damped.
    feedback: (n, n), GPTQ's.
    """

    order: torch.Tensor
    importance: torch.Tensor
    covariance: torch.Tensor
    feedback: torch.Tensor

    @classmethod
    def of(cls, covariance: torch.Tensor) -> "Inputs":
        """From a damped covariance (n, n) in fp64, columns in their own order."""
        energy = covariance.diagonal()
        order = energy.argsort(descending=True)
        ordered = covariance[order][:, order]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        factor = torch.linalg.cholesky(inverse, upper=True)
        feedback = factor.div_(factor.diagonal()[:, None].clone()).triu_(1)
        return cls(
            order, energy.float(), ordered.float().contiguous(), feedback.float().contiguous()
        )


@dataclass(frozen=True)
class Levels:
    """The values that a column can take: scale * (code - zero), with codes from 0 to top.

    scale, zero: (groups, m) fp32. group: (n), that of each column.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    group: torch.Tensor
    top: int

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, m) fp32 for codes (n, m)."""
        return (codes - self.zero[self.group]).mul_(self.scale[self.group])


def quantize_by_inputs(
    weight: torch.Tensor,
    like: Quantized | None = None,
    *,
    inputs: Inputs,
    grid: Grid,
    rounds: int = _ROUNDS,
) -> Quantized:
    """A weight (m, n) of any float dtype, with `rounds` of scales and codes after GPTQ.

    like: a weight that was nearly the same, whose ranges are used again. Raises ModelError where groups do not
    divide n.
    """
    rows = max(1, WEIGHTS_AT_ONCE[weight.device.type] // weight.shape[1])
    parts = []
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].float()
        found = like or quantize(part, grid, inputs.importance)
        at = slice(start, start + rows) if like else slice(None)
        parts.append(_quantize_rows(part, found.scales[at], found.zeros[at], inputs, grid, rounds))
    codes, scales, zeros = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales", "zeros")
    )
    return Quantized(grid, codes, scales, zeros)


def _quantize_rows(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    inputs: Inputs,
    grid: Grid,
    rounds: int,
) -> Quantized:
    levels = Levels(
        scale=scales.T.float().contiguous(),
        zero=zeros_of(grid, zeros).T.contiguous(),
        group=inputs.order // grid.group_size,
        top=2**grid.bits - 1,
    )
    w = weight.T[inputs.order].contiguous()
    codes = gptq(w, inputs, levels)
    error = squared_error(w, codes, inputs, levels)
    for _ in range(rounds):
        fitted = replace(levels, scale=fitted_scales(w, codes, inputs, levels))
        found = descend(w, codes, inputs, fitted)
        found_error = squared_error(w, found, inputs, fitted)
        is_better = found_error < error
        codes, error = torch.where(is_better, found, codes), torch.minimum(error, found_error)
        levels = replace(levels, scale=torch.where(is_better, fitted.scale, levels.scale))
    in_place = torch.empty_like(codes)
    in_place[inputs.order] = codes
    return Quantized(grid, in_place.T.contiguous(), levels.scale.T.half().contiguous(), zeros)


def gptq(w: torch.Tensor, inputs: Inputs, levels: Levels) -> torch.Tensor:
    """Codes (n, m) uint8 for w (n, m) fp32."""
    return _sweep(w.clone(), None, inputs.feedback, levels)


def descend(w: torch.Tensor, codes: torch.Tensor, inputs: Inputs, levels: Levels) -> torch.Tensor:
    """Codes (n, m) uint8 for w (n, m) fp32 that are no worse under these levels, from codes (n, m)."""
    now, energy = levels.values(codes), inputs.covariance.diagonal()
    targets = (inputs.covariance @ (w - now)).div_(energy[:, None]).add_(now)
    feedback = (-inputs.covariance / energy).fill_diagonal_(0)
    return _sweep(targets, now, feedback, levels)


def _sweep(
    targets: torch.Tensor, now: torch.Tensor | None, feedback: torch.Tensor, levels: Levels
) -> torch.Tensor:
    """Codes (n, m) for the targets (n, m), which are overwritten. The error of a column is the change from its value
    in `now` (n, m), where that is given, and else what its target loses, for which only later columns make up."""
    codes = torch.empty_like(targets, dtype=torch.uint8)
    step = _COLUMNS_AT_ONCE[targets.device.type]
    for start in range(0, len(targets), step):
        block = slice(start, min(start + step, len(targets)))
        errors = _round_block(targets, now, feedback, levels, block, codes)
        if now is not None:
            targets[:start].addmm_(feedback[block, :start].T, errors, alpha=-1)
        targets[block.stop :].addmm_(feedback[block, block.stop :].T, errors, alpha=-1)
    return codes


def _round_block(
    targets: torch.Tensor,
    now: torch.Tensor | None,
    feedback: torch.Tensor,
    levels: Levels,
    block: slice,
    codes: torch.Tensor,
) -> torch.Tensor:
    """Write the codes of some columns; their errors (columns, m)."""
    errors = torch.empty_like(targets[block])
    if targets.is_cuda:
        from qlora_space.lowbit import rounding_kernels

        rounding_kernels.round_block(targets, now, feedback, levels, block.start, codes, errors)
        return errors
    groups = levels.group[block].tolist()
    for i, group in zip(range(block.start, block.stop), groups, strict=True):
        scale, zero = levels.scale[group], levels.zero[group]
        code = (targets[i] / scale).add_(zero).round_().clamp_(0, levels.top)
        codes[i] = code
        before, error = targets[i] if now is None else now[i], errors[i - block.start]
        torch.sub(before, code.sub_(zero).mul_(scale), out=error)
        moved = slice(i + 1 if now is None else block.start, block.stop)
        targets[moved].addr_(feedback[i, moved], error, alpha=-1)
    return errors


def fitted_scales(
    w: torch.Tensor, codes: torch.Tensor, inputs: Inputs, levels: Levels
) -> torch.Tensor:
    """The scales (groups, m) of least error for codes (n, m), all groups of a row together, as fp16 holds them.

    A regression for each row: with u_g its codes less their zeros in group g and 0 in others, scales s solve
    sum_h (u_g^T C u_h) s_h = u_g^T C w. A small ridge pulls to the scales before, and one that would move far stays.
    """
    groups, m = levels.scale.shape
    u = codes - levels.zero[levels.group]
    wanted = inputs.covariance @ w
    left, right = w.new_empty(groups, groups, m), w.new_empty(groups, m)
    for g in range(groups):
        own = (levels.group == g).nonzero()[:, 0]
        products = (inputs.covariance[:, own] @ u[own]).mul_(u)
        left[g] = w.new_zeros(groups, m).index_add_(0, levels.group, products)
        right[g] = (wanted[own] * u[own]).sum(0)
    energy = left.diagonal().T
    ridge = _RIDGE * energy.mean(0) + 1e-12
    left.diagonal().add_(ridge[:, None])
    right.add_(ridge * levels.scale)
    found = torch.linalg.solve(left.permute(2, 0, 1).double(), right.T.double()).T.float()
    is_near = (found > levels.scale / _FARTHEST) & (found < levels.scale * _FARTHEST)
    fitted = torch.where(is_near, found, levels.scale).half().float()
    return fitted.clamp_min_(SMALLEST_SCALE)


def squared_error(
    w: torch.Tensor, codes: torch.Tensor, inputs: Inputs, levels: Levels
) -> torch.Tensor:
    """(m): the mean square of each output's error, for w and codes (n, m)."""
    d = w - levels.values(codes)
    return (inputs.covariance @ d).mul_(d).sum(0)
