"""Mixed bits: which linear gets 2, 3 or 4, so that the mean over all weights is what was asked for."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.stream import Block, Stream

WIDTHS = (2, 3, 4)
_ROWS = 128  # of a matrix: how much less is lost with every bit differs little from row to row


@dataclass(frozen=True)
class Cost:
    """Of one linear: how many weights it has, and how far its block's output is off at each width of this linear, the
    rest of the block in 16 bits; as a share of the energy of the output."""

    weights: int
    errors: Mapping[int, float]


def measured_costs(model: PreTrainedModel, stream: Stream, group_size: int) -> dict[str, Cost]:
    """A pass over the 16-bit model in which every linear is tried at the smallest width.

    What the block makes of it counts, not the linear's own error: that says nothing of what attention and the residual
    stream around it forgive.
    """
    costs: dict[str, Cost] = {}
    for block in stream:
        wanted = block.output().float()
        for inner, linear in block.linears.items():
            costs[f"{block.name}.{inner}"] = _cost(block, linear, wanted, group_size)
        model.get_submodule(block.name).to("meta")
    return costs


@torch.no_grad()
def _cost(block: Block, linear: nn.Linear, wanted: torch.Tensor, group_size: int) -> Cost:
    original, smallest = linear.weight, grid_of(WIDTHS[0], group_size)
    low = quantize(original, smallest).dequantized()
    linear.weight = nn.Parameter(low.to(original.dtype), requires_grad=False)
    off = block.output().float() - wanted
    linear.weight = original
    error = float(off.square().sum() / wanted.square().sum().clamp_min(1e-30))
    rows = original[:: max(1, len(original) // _ROWS)].float()
    lost = {bits: _lost(rows, bits, group_size) for bits in WIDTHS}
    shares = {bits: lost[bits] / max(lost[WIDTHS[0]], 1e-30) for bits in WIDTHS}
    return Cost(original.numel(), {bits: error * shares[bits] for bits in WIDTHS})


def _lost(rows: torch.Tensor, bits: int, group_size: int) -> float:
    back = quantize(rows, grid_of(bits, group_size)).dequantized()
    return float((rows - back).square().sum())


def allocate(costs: Mapping[str, Cost], mean_bits: float) -> dict[str, int]:
    """Bit after bit to the linear where it saves most error for its size, as long as the mean allows.

    Errors fall by about the same factor with every bit, so the next bit of a linear is always worth less than its
    last one and the greedy choice is within one linear of the best.
    """
    widths = dict.fromkeys(costs, WIDTHS[0])
    left = (mean_bits - WIDTHS[0]) * sum(cost.weights for cost in costs.values()) * (1 + 1e-9)
    queue = [(-_saved(cost, WIDTHS[0]), name) for name, cost in costs.items()]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        cost = costs[name]
        if cost.weights > left:
            continue
        left -= cost.weights
        widths[name] += 1
        if widths[name] < WIDTHS[-1]:
            heapq.heappush(queue, (-_saved(cost, widths[name]), name))
    return widths


def _saved(cost: Cost, bits: int) -> float:
    """Error that the next bit takes away, for each bit that it costs."""
    return (cost.errors[bits] - cost.errors[bits + 1]) / cost.weights
