"""Mixed bits: which linear gets 2, 3 or 4 bits, for a given mean over all weights."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.stream import CalibratedBlock, CalibrationStream

WIDTHS = (2, 3, 4)
_SAMPLED_ROWS = 128  # the ratio of errors at two widths differs little from row to row


@dataclass(frozen=True)
class Cost:
    """What one linear loses: its number of weights, and for each width the squared error of its block's output, as a
    share of the output's energy, with this linear at that width and the rest of the block in 16 bits."""

    weights: int
    errors: Mapping[int, float]


def measure_costs(
    model: PreTrainedModel, stream: CalibrationStream, group_size: int, *, calibrated: bool
) -> dict[str, Cost]:
    """One pass over the 16-bit model; every linear is tried at the smallest width, `calibrated` in ranges that go by
    its inputs. Costs by the linears' names.

    The error of the block's output counts, not the linear's own, which does not show what attention and the residual
    stream around it forgive (docs/LOWBIT.md compares).
    """
    costs: dict[str, Cost] = {}
    for block in stream:
        reference = block.output().float()
        for inner, linear in block.linears.items():
            importance = block.covariances[inner].diagonal() if calibrated else None
            costs[f"{block.name}.{inner}"] = _cost(block, linear, reference, group_size, importance)
        model.get_submodule(block.name).to("meta")
    return costs


@torch.no_grad()
def _cost(
    block: CalibratedBlock,
    linear: nn.Linear,
    reference: torch.Tensor,
    group_size: int,
    importance: torch.Tensor | None,
) -> Cost:
    original, smallest = linear.weight, grid_of(WIDTHS[0], group_size)
    low = quantize(original, smallest, importance).dequantized()
    linear.weight = nn.Parameter(low.to(original.dtype), requires_grad=False)
    difference = block.output().float() - reference
    linear.weight = original
    error = float(difference.square().sum() / reference.square().sum().clamp_min(1e-30))
    rows = original[:: max(1, len(original) // _SAMPLED_ROWS)].float()
    squared = {bits: _squared_error(rows, bits, group_size) for bits in WIDTHS}
    shares = {bits: squared[bits] / max(squared[WIDTHS[0]], 1e-30) for bits in WIDTHS}
    return Cost(original.numel(), {bits: error * shares[bits] for bits in WIDTHS})


def _squared_error(rows: torch.Tensor, bits: int, group_size: int) -> float:
    dequantized = quantize(rows, grid_of(bits, group_size)).dequantized()
    return float((rows - dequantized).square().sum())


def allocate(costs: Mapping[str, Cost], mean_bits: float) -> dict[str, int]:
    """Bits of each linear, by its name; their mean over all weights is at most `mean_bits` (2 to 4).

    Greedy: the next bit goes to the linear where it saves most error for its size. Errors fall by about the same
    factor with every bit, so a linear's next bit always saves less than its last one, and the greedy choice is within
    one linear of the best.
    """
    widths = dict.fromkeys(costs, WIDTHS[0])
    budget = (mean_bits - WIDTHS[0]) * sum(cost.weights for cost in costs.values()) * (1 + 1e-9)
    queue = [(-_saved(cost, WIDTHS[0]), name) for name, cost in costs.items()]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        cost = costs[name]
        if cost.weights > budget:
            continue
        budget -= cost.weights
        widths[name] += 1
        if widths[name] < WIDTHS[-1]:
            heapq.heappush(queue, (-_saved(cost, widths[name]), name))
    return widths


def _saved(cost: Cost, bits: int) -> float:
    """How much the error falls with the next bit, for each bit of storage."""
    return (cost.errors[bits] - cost.errors[bits + 1]) / cost.weights
