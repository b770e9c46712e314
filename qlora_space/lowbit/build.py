"""quantize_base(): from a folder of 16-bit weights to a packed model and the adapter inits that repair it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_space.lowbit.adapter_init import (
    AdapterInit,
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
from qlora_space.lowbit.grid import grid_of, quantize, whole_grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.rounding import Inputs, quantize_by_inputs
from qlora_space.lowbit.shards import Shards, load_blocks
from qlora_space.lowbit.stream import CalibratedBlock, CalibrationStream
from qlora_space.lowbit.windows import Windows

Progress = Callable[[int, int], object]  # blocks done, blocks in all


@dataclass(frozen=True)
class Recipe:
    """How a base is quantized and repaired.

    bits: 2, 3 or 4. group_size: weights that share a scale, a divisor of every linear's inputs. init, r: the adapter
    (adapter_init.py). calibrated: quantize by the calibration (rounding.py), much better, and otherwise by the weights
    alone, so that bits and group_size name the codes. mean_bits: if not 0, each linear gets 2, 3 or 4 bits by what they
    save, on average at most that many. whole_zeros: in GPTQ's grid, which gptq_format.py writes.
    """

    bits: int
    group_size: int = 64
    init: Init = "eora"
    r: int = 16
    calibrated: bool = True
    mean_bits: float = 0.0
    whole_zeros: bool = False


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

    A calibrated base with its repair is never farther from the 16-bit one on the held-out windows than one by weights.

    folder: config.json and safetensors of a causal LM. device: "cpu" or "cuda", by default the GPU where there is one.
    dtype: of the computations and of what is not packed, by default the fastest of the device. Raises ModelError.
    """
    folder, device = Path(folder), device or default_device()
    dtype = dtype or default_dtype(device)
    bits_of = allocated_bits(folder, recipe, windows, device, dtype) if recipe.mean_bits else {}
    model = empty_model(folder)
    stream = CalibrationStream(model, Shards(folder, model), windows, device, dtype)
    recipes = [recipe]
    if recipe.calibrated and windows.num_calibration < len(windows.ids):
        recipes.append(replace(recipe, calibrated=False))  # to compare with
    ways: list[Way] = [{} for _ in recipes]
    total = len(block_names(model))
    for done, block in enumerate(stream):
        progress(done, total)
        for way, own in zip(ways, recipes, strict=True):
            way.update(_packed(block, own, bits_of))
        _place(
            model, {name: one for name, one in ways[0].items() if name.startswith(f"{block.name}.")}
        )
        pack_experts(model.get_submodule(block.name), recipe.bits, recipe.group_size)
        model.get_submodule(block.name).to("cpu")
    progress(total, total)
    model.to(device)  # type: ignore[arg-type]
    states = stream.hidden_states
    chosen = _closest(ReferenceEvaluator.on_heldout(windows, states, model), ways, device)
    inits = {name: (one.a, one.b) for name, one in chosen.items()}
    errors = {name: one.error for name, one in chosen.items()}
    return LowBitBase(model, inits, errors, windows, states)


def allocated_bits(
    folder: Path, recipe: Recipe, windows: Windows, device: str, dtype: torch.dtype
) -> dict[str, int]:
    """Bits of every linear by its name, their mean at most recipe.mean_bits. Raises ModelError."""
    model = empty_model(folder)
    stream = CalibrationStream(model, Shards(folder, model), windows, device, dtype)
    costs = measure_costs(model, stream, recipe.group_size, calibrated=recipe.calibrated)
    return allocate(costs, recipe.mean_bits)


@torch.no_grad()
def pack_base(
    folder: Path, bits: int, group_size: int, device: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The packed base alone, by its weights: the same codes as quantize_base's, unless that one used the calibration
    for them (calibrated, mean_bits, srr). Raises ModelError."""
    model = empty_model(folder)
    for block in load_blocks(model, Shards(folder, model), device, dtype):
        for name, linear in block_linears(block).items():
            quantized = quantize(linear.weight, grid_of(bits, group_size))
            layer = LowBitLinear.from_quantized(quantized, linear.bias, dtype)
            block.set_submodule(name, layer)
        pack_experts(block, bits, group_size)
    return model


@dataclass(frozen=True)
class PackedLinear:
    """One linear and its repair A (r, n), B (m, r), fp32, on the CPU."""

    layer: LowBitLinear
    a: torch.Tensor
    b: torch.Tensor
    error: LayerError


Way = dict[str, PackedLinear]  # all linears, by their names in the model, quantized in one way


def _packed(block: CalibratedBlock, recipe: Recipe, bits_of: dict[str, int]) -> Way:
    """Linears that share their input follow each other, and share what is computed of its covariance."""
    packed: Way = {}
    seen = None
    for inner, linear in block.linears.items():
        covariance = block.covariances[inner]
        if seen is None or seen.covariance is not covariance:
            seen = Seen.of(covariance, calibrated=recipe.calibrated)
        name = f"{block.name}.{inner}"
        own = replace(recipe, bits=bits_of.get(name, recipe.bits))
        solved = solve(linear.weight, seen, own)
        layer = LowBitLinear.from_quantized(solved.quantized, linear.bias, linear.weight.dtype)
        error = LayerError(solved.error_quantized, solved.error_repaired)
        packed[name] = PackedLinear(layer.cpu(), solved.a.cpu(), solved.b.cpu(), error)
    return packed


def _place(model: PreTrainedModel, way: Way) -> None:
    for name, one in way.items():
        model.set_submodule(name, one.layer)


def _closest(evaluator: ReferenceEvaluator, ways: Sequence[Way], device: str) -> Way:
    """The first way, which is in the model, unless another one is closer to the 16-bit model on the held-out text: a
    calibration that is too short for the base, or of another kind, can mislead. That one is then put in."""
    if len(ways) == 1:
        return ways[0]
    kl = []
    for way in ways:
        _place(evaluator.model, way)
        evaluator.model.to(device)  # type: ignore[arg-type]
        with _repaired(evaluator.model, way):
            found = evaluator.evaluate(evaluator.model).kl
        kl.append(found if isfinite(found) else inf)
        for one in way.values():
            one.layer.cpu()
    best = ways[kl.index(min(kl))]
    _place(evaluator.model, best)
    evaluator.model.to(device)  # type: ignore[arg-type]
    return best


@contextmanager
def _repaired(model: PreTrainedModel, way: Way) -> Iterator[None]:
    """The repair as hooks: modules of peft would have to be taken out again."""

    def repair(one: PackedLinear) -> Callable[..., torch.Tensor]:
        a, b = (part.to(one.layer.codes.device, one.layer.weight.dtype) for part in (one.a, one.b))
        return lambda _, inputs, output: output + inputs[0] @ a.T @ b.T

    handles = [one.layer.register_forward_hook(repair(one)) for one in way.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Seen:
    """What linears of one input see: the covariance (n, n) of the calibration, its root, and what rounding by inputs
    takes from it, None if it is not done."""

    covariance: torch.Tensor
    root: torch.Tensor
    inputs: Inputs | None

    @classmethod
    def of(cls, covariance: torch.Tensor, *, calibrated: bool) -> "Seen":
        inputs = Inputs.of(damped(covariance)) if calibrated else None
        return cls(covariance, covariance_root(covariance), inputs)


def solve(weight: torch.Tensor, seen: Seen, recipe: Recipe) -> AdapterInit:
    """One weight (m, n) quantized and repaired by the recipe."""
    init, r = recipe.init, recipe.r
    grid = (whole_grid if recipe.whole_zeros else grid_of)(recipe.bits, recipe.group_size)
    if not recipe.calibrated or seen.inputs is None:
        by_weights = partial(quantize, grid=grid)
        return solve_adapter_init(weight, seen.root, by_weights, init, r)
    by_inputs = partial(quantize_by_inputs, inputs=seen.inputs, grid=grid)
    if init not in ("eora", "srr"):
        return solve_adapter_init(weight, seen.root, by_inputs, init, r)
    first = partial(by_inputs, rounds=1)  # what B A leaves of the weight is easier to quantize
    return solve_adapter_init(weight, seen.root, first, init, r, again=by_inputs)
