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
    """What is to be known of a linear's n inputs, fp32; linears with the same input share it.

    covariance: (n, n), damped. order: (n) columns from the most energy to the least, in which GPTQ goes (desc_act).
    feedback: (n, n), GPTQ's, in that order.
    """

    covariance: torch.Tensor
    order: torch.Tensor
    feedback: torch.Tensor

    @classmethod
    def of(cls, covariance: torch.Tensor) -> "Inputs":
        """From a damped covariance (n, n) in fp64."""
        order = covariance.diagonal().argsort(descending=True)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance[order][:, order]))
        factor = torch.linalg.cholesky(inverse, upper=True)
        feedback = factor.div_(factor.diagonal()[:, None].clone()).triu_(1)
        return cls(covariance.float(), order, feedback.float().contiguous())


@dataclass(frozen=True)
class Levels:
    """The values that a column can take: scale * (code - zero), with codes from 0 to top.

    scale, zero: (groups, m) fp32. group: (n), that of each column.
    """

    scale: torch.Tensor
    zero: torch.Tensor
    group: torch.Tensor
    top: int

    def steps(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, m) fp32: codes (n, m) less their zeros."""
        return codes - self.zero[self.group]

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """(n, m) fp32 for codes (n, m)."""
        return self.steps(codes).mul_(self.scale[self.group])


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
        found = like or quantize(part, grid, inputs.covariance.diagonal())
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
        group=torch.arange(weight.shape[1], device=weight.device) // grid.group_size,
        top=2**grid.bits - 1,
    )
    w = weight.T.contiguous()
    codes = gptq(w, inputs, levels)
    for _ in range(rounds):
        levels = replace(levels, scale=fitted_scales(w, codes, inputs, levels))
        codes = descend(w, codes, inputs, levels)
    return Quantized(grid, codes.T.contiguous(), levels.scale.T.half().contiguous(), zeros)


def gptq(w: torch.Tensor, inputs: Inputs, levels: Levels) -> torch.Tensor:
    """Codes (n, m) uint8 for w (n, m) fp32."""
    ordered = replace(levels, group=levels.group[inputs.order])
    found = _sweep(w[inputs.order], None, inputs.feedback, ordered)
    codes = torch.empty_like(found)
    codes[inputs.order] = found
    return codes


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
    in `now` (n, m), where that is given, and else what its target loses. Later columns' targets move by it."""
    codes = torch.empty_like(targets, dtype=torch.uint8)
    step = _COLUMNS_AT_ONCE[targets.device.type]
    for start in range(0, len(targets), step):
        block = slice(start, min(start + step, len(targets)))
        errors = _round_block(targets, now, feedback, levels, block, codes)
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
        moved = slice(i + 1, block.stop)
        targets[moved].addr_(feedback[i, moved], error, alpha=-1)
    return errors


def fitted_scales(
    w: torch.Tensor, codes: torch.Tensor, inputs: Inputs, levels: Levels
) -> torch.Tensor:
    """The scales (groups, m) of least error for codes (n, m), all groups of a row together, as fp16 holds them.

    A regression for each row: with u_g its codes less their zeros in group g and 0 in others, scales s minimize
    s^T A s - 2 b^T s, where A_gh = u_g^T C u_h and b_g = u_g^T C w. A small ridge pulls to the scales before. One that
    would move far stays, and so do those of a row for which that or fp16 would make the error larger.
    """
    groups, m = levels.scale.shape
    u = levels.steps(codes)
    a = w.new_empty(groups, groups, m)
    for g, own in enumerate(_slices(len(u), groups)):  # symmetric: each pair of groups once
        rest = slice(own.start, None)
        pairs = (inputs.covariance[rest, own] @ u[own]).mul_(u[rest])
        a[g, g:] = a[g:, g] = pairs.view(groups - g, -1, m).sum(1)
    b = (inputs.covariance @ w).mul_(u).view(groups, -1, m).sum(1)
    ridge = _RIDGE * a.diagonal().mean(1) + 1e-12
    pulled = a.permute(2, 0, 1).double() + torch.diag_embed(ridge[:, None].expand(m, groups))
    right = (b + ridge * levels.scale).T.double()
    found = torch.linalg.solve(pulled, right).T.float()
    is_near = (found > levels.scale / _FARTHEST) & (found < levels.scale * _FARTHEST)
    fitted = torch.where(is_near, found, levels.scale).half().float().clamp_min_(SMALLEST_SCALE)
    change = (torch.einsum("ghm,hm->gm", a, fitted + levels.scale) - 2 * b) * (
        fitted - levels.scale
    )
    return torch.where(change.sum(0) < 0, fitted, levels.scale)


def _slices(columns: int, groups: int) -> list[slice]:
    size = columns // groups
    return [slice(start, start + size) for start in range(0, columns, size)]
