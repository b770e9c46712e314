"""quantize_base(): from a folder of 16-bit weights to a packed model and the adapter it starts with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.allocate import allocate, measured_costs
from qlora_space.lowbit.gptq import gptq
from qlora_space.lowbit.grid import Quantized, grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards, linears_of, skeleton
from qlora_space.lowbit.solver import Init, damped, root_of, start
from qlora_space.lowbit.stream import Block, Stream, Windows, filled_blocks

Progress = Callable[[int, int], object]
Starts = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Recipe:
    """Everything beside the base and the calibration text that decides about the result; mean_bits > 0: linears get
    bits of their own, `bits` on average no more than that."""

    bits: int
    group_size: int = 64
    init: Init = "eora"
    r: int = 16
    with_gptq: bool = False
    mean_bits: float = 0.0


@dataclass(frozen=True)
class LayerError:
    """Mean squared output error of one linear as a share of its output, before and after its start."""

    quantized: float
    started: float


@dataclass(frozen=True)
class LowBitBase:
    """`starts` maps the name of a linear to A (r, n) and B (m, r), fp32, on the CPU. `teacher` (N, L, H) are the 16-bit
    model's last hidden states for all windows."""

    model: PreTrainedModel
    starts: Starts
    errors: dict[str, LayerError]
    teacher: torch.Tensor


def quantize_base(
    folder: Path,
    recipe: Recipe,
    windows: Windows,
    *,
    device: str,
    dtype: torch.dtype,
    progress: Progress = lambda done, total: None,
) -> LowBitBase:
    """Block by block: neither the 16-bit model nor the packed one is on the device as a whole while it works.
    Raises ModelError.
    """
    widths = widths_of(folder, recipe, windows, device, dtype) if recipe.mean_bits else {}
    model = skeleton(folder)
    stream = Stream(model, Shards(folder), windows, device, dtype)
    starts: Starts = {}
    errors: dict[str, LayerError] = {}
    total = model.config.num_hidden_layers
    for done, block in enumerate(stream):
        progress(done, total)
        _replace_linears(model, block, recipe, widths, starts, errors)
        model.get_submodule(block.name).to("cpu")
    progress(total, total)
    return LowBitBase(model.to(device), starts, errors, stream.hidden)  # type: ignore[arg-type]


def widths_of(
    folder: Path, recipe: Recipe, windows: Windows, device: str, dtype: torch.dtype
) -> dict[str, int]:
    """Bits of every linear by its name, their mean as the recipe asks. Raises ModelError."""
    model = skeleton(folder)
    stream = Stream(model, Shards(folder), windows, device, dtype)
    return allocate(measured_costs(model, stream, recipe.group_size), recipe.mean_bits)


@torch.no_grad()
def pack_base(
    folder: Path, bits: int, group_size: int, device: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The packed base alone, without calibration: the same codes as quantize_base's. Raises ModelError."""
    model = skeleton(folder)
    for block in filled_blocks(model, Shards(folder), device, dtype):
        for name, linear in linears_of(block).items():
            quantized = quantize(linear.weight, grid_of(bits, group_size))
            layer = LowBitLinear.from_quantized(quantized, linear.bias, dtype)
            block.set_submodule(name, layer)
    return model


def quantize_one(w: torch.Tensor, covariance: torch.Tensor, recipe: Recipe) -> Quantized:
    """One matrix (m, n) by the recipe; the covariance only counts with the GPTQ pass."""
    grid = grid_of(recipe.bits, recipe.group_size)
    return gptq(w, damped(covariance), grid) if recipe.with_gptq else quantize(w, grid)


def _replace_linears(
    model: PreTrainedModel,
    block: Block,
    recipe: Recipe,
    widths: dict[str, int],
    starts: Starts,
    errors: dict[str, LayerError],
) -> None:
    """Linears that share their input come one after the other, and share the factor of its covariance."""
    factored, root = None, torch.empty(0)
    for inner, linear in block.linears.items():
        covariance = block.covariances[inner]
        if covariance is not factored:
            factored, root = covariance, root_of(covariance)
        name = f"{block.name}.{inner}"
        own = replace(recipe, bits=widths.get(name, recipe.bits))
        found = start(
            linear.weight,
            root,
            lambda w, c=covariance, own=own: quantize_one(w, c, own),
            recipe.init,
            recipe.r,
        )
        layer = LowBitLinear.from_quantized(found.quantized, linear.bias, linear.weight.dtype)
        model.set_submodule(name, layer)
        starts[name] = (found.a.cpu(), found.b.cpu())
        errors[name] = LayerError(found.error_quantized, found.error_started)


@torch.no_grad()
def put_starts(model: PeftModel, starts: Starts) -> None:
    """Write the starts into a fresh adapter, its scale divided out. Raises ModelError if one has no place."""
    base: nn.Module = model.get_base_model()
    for name, (a, b) in starts.items():
        layer: Any = base.get_submodule(name)
        if not hasattr(layer, "lora_A"):
            raise ModelError(f"The adapter has no place at {name}.", "Train all linear layers.")
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b / layer.scaling["default"])
