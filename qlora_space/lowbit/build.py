"""quantize_base(): from a folder of 16-bit weights to a packed model and the adapter inits that repair it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_space.lowbit.adapter_init import (
    AdapterInits,
    Init,
    covariance_root,
    damped,
    solve_adapter_init,
)
from qlora_space.lowbit.allocate import allocate, measure_costs
from qlora_space.lowbit.architecture import (
    block_linears,
    block_names,
    default_device,
    default_dtype,
    empty_model,
)
from qlora_space.lowbit.evaluate import ReferenceEvaluator
from qlora_space.lowbit.expert_grid import pack_experts
from qlora_space.lowbit.gptq import gptq
from qlora_space.lowbit.grid import Quantized, grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards, load_blocks
from qlora_space.lowbit.stream import CalibratedBlock, CalibrationStream
from qlora_space.lowbit.windows import Windows

Progress = Callable[[int, int], object]  # blocks done, blocks in all


@dataclass(frozen=True)
class Recipe:
    """How a base is quantized and repaired.

    bits: 2, 3 or 4. group_size: weights that share a scale, a divisor of every linear's inputs. init, r: the adapter
    (adapter_init.py). with_gptq: round with the calibration text in view, better and slower. mean_bits: if not 0, each
    linear gets 2, 3 or 4 bits by what they save, on average at most that many.
    """

    bits: int
    group_size: int = 64
    init: Init = "eora"
    r: int = 16
    with_gptq: bool = False
    mean_bits: float = 0.0


@dataclass(frozen=True)
class LayerError:
    """Mean squared output error of one linear as a share of its output, before and after the repair."""

    quantized: float
    repaired: float


@dataclass(frozen=True)
class LowBitBase:
    """A packed model, frozen and in eval mode, and what the calibration found.

    adapter_inits: for each packed linear A (r, n) and B (m, r), fp32, on the CPU. teacher_states: (N, L, H), the
    16-bit model's last hidden states for all windows, on the CPU.
    """

    model: PreTrainedModel
    adapter_inits: AdapterInits
    errors: dict[str, LayerError]
    windows: Windows
    teacher_states: torch.Tensor

    def evaluator(self) -> ReferenceEvaluator:
        """Compares with the 16-bit base on the held-out windows."""
        return ReferenceEvaluator.on_heldout(self.windows, self.teacher_states, self.model)


def quantize_base(
    folder: Path | str,
    recipe: Recipe,
    windows: Windows,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = lambda done, total: None,
) -> LowBitBase:
    """Quantize and solve for the repair block by block; never is a whole model in 16 bits in memory.

    folder: config.json and safetensors of a causal LM. device: "cpu" or "cuda", by default the GPU where there is one.
    dtype: of the computations and of what is not packed, by default the fastest of the device. Raises ModelError.
    """
    folder, device = Path(folder), device or default_device()
    dtype = dtype or default_dtype(device)
    bits_of = allocated_bits(folder, recipe, windows, device, dtype) if recipe.mean_bits else {}
    model = empty_model(folder)
    stream = CalibrationStream(model, Shards(folder, model), windows, device, dtype)
    inits: AdapterInits = {}
    errors: dict[str, LayerError] = {}
    total = len(block_names(model))
    for done, block in enumerate(stream):
        progress(done, total)
        _replace_linears(model, block, recipe, bits_of, inits, errors)
        pack_experts(model.get_submodule(block.name), recipe.bits, recipe.group_size)
        model.get_submodule(block.name).to("cpu")
    progress(total, total)
    model.to(device)  # type: ignore[arg-type]
    return LowBitBase(model, inits, errors, windows, stream.hidden_states)


def allocated_bits(
    folder: Path, recipe: Recipe, windows: Windows, device: str, dtype: torch.dtype
) -> dict[str, int]:
    """Bits of every linear by its name, their mean at most recipe.mean_bits. Raises ModelError."""
    model = empty_model(folder)
    stream = CalibrationStream(model, Shards(folder, model), windows, device, dtype)
    return allocate(measure_costs(model, stream, recipe.group_size), recipe.mean_bits)


@torch.no_grad()
def pack_base(
    folder: Path, bits: int, group_size: int, device: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The packed base alone, without calibration: the same codes as quantize_base's, unless that one used the
    calibration for them (with_gptq, mean_bits, srr). Raises ModelError."""
    model = empty_model(folder)
    for block in load_blocks(model, Shards(folder, model), device, dtype):
        for name, linear in block_linears(block).items():
            quantized = quantize(linear.weight, grid_of(bits, group_size))
            layer = LowBitLinear.from_quantized(quantized, linear.bias, dtype)
            block.set_submodule(name, layer)
        pack_experts(block, bits, group_size)
    return model


def quantize_one(w: torch.Tensor, covariance: torch.Tensor, recipe: Recipe) -> Quantized:
    """One weight (m, n) by the recipe; the covariance (n, n) of its inputs counts only with GPTQ."""
    grid = grid_of(recipe.bits, recipe.group_size)
    return gptq(w, damped(covariance), grid) if recipe.with_gptq else quantize(w, grid)


def _replace_linears(
    model: PreTrainedModel,
    block: CalibratedBlock,
    recipe: Recipe,
    bits_of: dict[str, int],
    inits: AdapterInits,
    errors: dict[str, LayerError],
) -> None:
    """Linears that share their input follow each other, and share the factor of its covariance."""
    factored, root = None, torch.empty(0)
    for inner, linear in block.linears.items():
        covariance = block.covariances[inner]
        if covariance is not factored:
            factored, root = covariance, covariance_root(covariance)
        name = f"{block.name}.{inner}"
        own = replace(recipe, bits=bits_of.get(name, recipe.bits))
        solved = solve_adapter_init(
            linear.weight,
            root,
            lambda w, c=covariance, own=own: quantize_one(w, c, own),
            recipe.init,
            recipe.r,
        )
        layer = LowBitLinear.from_quantized(solved.quantized, linear.bias, linear.weight.dtype)
        model.set_submodule(name, layer)
        inits[name] = (solved.a.cpu(), solved.b.cpu())
        errors[name] = LayerError(solved.error_quantized, solved.error_repaired)
