"""Mixed bits: which linear gets 2, 3 or 4, so that the mean over all weights is what was asked for."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.solver import root_of
from qlora_space.lowbit.stream import Block, Stream

WIDTHS = (2, 3, 4)
_ROWS = 128  # of a matrix that are tried: what a width costs differs little from row to row


@dataclass(frozen=True)
class Cost:
    """Of one linear: how many weights it has, and the share of its output's energy that is lost at each width."""

    weights: int
    errors: Mapping[int, float]


def measured_costs(model: PreTrainedModel, stream: Stream, group_size: int) -> dict[str, Cost]:
    """A pass over the 16-bit model: what every width would cost each linear, for the inputs that it really sees."""
    costs: dict[str, Cost] = {}
    for block in stream:
        costs |= {f"{block.name}.{inner}": cost for inner, cost in _of_block(block, group_size)}
        model.get_submodule(block.name).to("meta")
    return costs


def _of_block(block: Block, group_size: int) -> list[tuple[str, Cost]]:
    found, factored, root = [], None, torch.empty(0)
    for inner, linear in block.linears.items():
        if block.covariances[inner] is not factored:
            factored = block.covariances[inner]
            root = root_of(factored)
        found.append((inner, _of_linear(linear, root, group_size)))
    return found


def _of_linear(linear: nn.Linear, root: torch.Tensor, group_size: int) -> Cost:
    weight: Any = linear.weight
    w = weight[:: max(1, len(weight) // _ROWS)].float()
    energy = float((w @ root).square().sum())
    errors = {}
    for bits in WIDTHS:
        d = w - quantize(w, grid_of(bits, group_size)).dequantized()
        errors[bits] = float((d @ root).square().sum()) / max(energy, 1e-30)
    return Cost(weight.numel(), errors)


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
