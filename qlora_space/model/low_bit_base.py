"""prepare_low_bit_base(): a plan's packed base with its initialized adapter, made once and stored on disk.

    quantized/<base and grid>/                     the packed base: config.json, safetensors
    quantized/<base and grid>/start-<all of it>/   the adapter init: start.safetensors, quality.json

The codes of a base that is not calibrated depend on its weights and its grid alone, so a recipe of two numbers names
them. Calibrated quantization and mixed bits, which use the calibration text, and SRR, which rounds what its own adapter
leaves, have packed bases of their own.
"""

import gc
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from qlora_space.core.atomic import whole_folder
from qlora_space.core.events import PhaseName, QualityPoint
from qlora_space.core.targets import ALL_LINEAR
from qlora_space.data import Prepared
from qlora_space.lowbit.adapter_init import AdapterInits
from qlora_space.lowbit.build import LowBitBase, Recipe, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.distill import HealRecipe, default_heal_learning_rate, heal
from qlora_space.lowbit.linear import bits_per_weight
from qlora_space.lowbit.repair import apply_adapter_inits
from qlora_space.model.adapter import add_adapter
from qlora_space.model.base import compute_dtype
from qlora_space.model.calibration_text import Calibration, calibration_for
from qlora_space.model.gate import quality_point
from qlora_space.plan import Plan
from qlora_space.plan.low_bit import HEAL_STEPS, HEAL_TOKENS
from qlora_space.runs import QUALITY_FILE, Quality

_VERSION = 1  # of the codes by weights: another search of ranges makes other bases
_ROUNDING_VERSION = "by inputs 1"  # of those by the calibration
_INITS_FILE = "start.safetensors"
Progress = Callable[[PhaseName, int, int], object]  # phase ("model" or "heal"), done, total


@dataclass(frozen=True)
class PreparedBase:
    """A peft model over a packed base before its first step, how good it is, and the folder of the base."""

    model: PeftModel
    quality: Quality
    packed: Path


def prepare_low_bit_base(
    plan: Plan,
    base_folder: Path,
    prepared: Prepared | None,
    tokenizer: Any,
    quantized_folder: Path,
    progress: Progress,
) -> PreparedBase:
    """From disk if it was made before. Raises ModelError, DiskFull."""
    device = plan.hardware.device
    calibration = calibration_for(
        prepared,
        tokenizer,
        is_demo=plan.base.source == "demo",
        longest=min(plan.max_length, plan.base.max_position_embeddings),
        device=device,
    )
    packed = packed_folder(plan, calibration, quantized_folder)
    # A random A, and what a heal learns, depend on more than the repair does.
    is_random = plan.heal or plan.init == "zero"
    random_parts = (plan.seed, plan.lora_dropout, plan.lora_alpha) if is_random else ()
    key = cache_key(plan.init, plan.heal, plan.r, calibration.sha256, *random_parts, *_places(plan))
    stored = packed / f"start-{key}"
    if not (stored / QUALITY_FILE).is_file():
        return _build(plan, base_folder, calibration, packed, stored, progress)
    progress("model", 0, 1)
    model = add_adapter(load_lowbit(packed, device, compute_dtype(device)), plan)
    apply_adapter_inits(model, _read_adapter_inits(stored / _INITS_FILE))
    quality = Quality.model_validate_json((stored / QUALITY_FILE).read_bytes())
    return PreparedBase(model, quality, packed)


def _places(plan: Plan) -> tuple[object, ...]:
    """Parts of the key of an adapter that is not on all layers, or learns at another scale; none for the usual ones."""
    targets = () if plan.target_modules == ALL_LINEAR else (plan.target_modules,)
    return (*targets, "rslora") if plan.use_rslora and plan.heal else targets


def packed_folder(plan: Plan, calibration: Calibration, quantized_folder: Path) -> Path:
    """Where the packed base of the plan is, or will be."""
    grid = (plan.base.sha, plan.bits, plan.group_size, plan.hardware.device)
    return quantized_folder / cache_key(_VERSION, *grid, *_calibration_parts(plan, calibration))


def _calibration_parts(plan: Plan, calibration: Calibration) -> tuple[object, ...]:
    """Parts of the key of a base whose codes depend on the calibration; none for the others."""
    if not plan.base_is_own:
        return ()
    if plan.calibrated:  # codes are chosen with their repair
        rank = plan.r if plan.init != "zero" else 0
        rounding = (_ROUNDING_VERSION, plan.init, rank, plan.mean_bits)
    else:
        rounding = (plan.r if plan.init == "srr" else 0, plan.mean_bits)
    # The codes depend on the precision in which the calibration was computed.
    is_fp32 = compute_dtype(plan.hardware.device) is torch.float32
    precision = ("fp32",) if is_fp32 else ()
    return (calibration.sha256, *rounding, *precision)


def _build(
    plan: Plan,
    base_folder: Path,
    calibration: Calibration,
    packed: Path,
    stored: Path,
    progress: Progress,
) -> PreparedBase:
    device = plan.hardware.device
    recipe = Recipe(plan.bits, plan.group_size, plan.init, plan.r, plan.calibrated, plan.mean_bits)
    base = quantize_base(
        base_folder,
        recipe,
        calibration.windows,
        device=device,
        dtype=compute_dtype(device),
        progress=lambda done, total: progress("model", done, total),
    )
    if not (packed / "config.json").is_file():
        with whole_folder(packed, "The quantized base") as part:
            save_lowbit(base.model, part)
    model, inits, points = _measure_stages(plan, base, progress)
    quality = quality_of(plan, calibration, points, bits_per_weight(model))
    with whole_folder(stored, "The quantized base") as part:
        save_file(_adapter_tensors(model, inits), part / _INITS_FILE)
        (part / QUALITY_FILE).write_text(quality.model_dump_json(indent=1))
    return PreparedBase(model, quality, packed)


def quality_of(
    plan: Plan, calibration: Calibration, points: tuple[QualityPoint, ...], stored_bits: float
) -> Quality:
    """The record of the measured points; stored_bits: bits per weight with scales and zeros."""
    return Quality(
        base_id=Path(plan.base.id).name if plan.base.source == "local" else plan.base.id,
        base_sha=plan.base.sha,
        bits=plan.bits,
        init=plan.init,
        heal=plan.heal,
        group_size=plan.group_size,
        mean_bits=plan.mean_bits,
        calibrated=plan.calibrated,
        r=plan.r,
        bits_per_weight=round(stored_bits, 3),
        text=calibration.heldout,
        points=points,
    )


def _measure_stages(
    plan: Plan, base: LowBitBase, progress: Progress
) -> tuple[PeftModel, AdapterInits, tuple[QualityPoint, ...]]:
    """Evaluate the quantized base, then with its repair, then healed; return the model of the last stage, and the
    inits of the layers that have an adapter."""
    evaluator = base.evaluator()
    points = [
        quality_point("16 bit", evaluator.reference()),
        quality_point("quantized", evaluator.evaluate(base.model.eval())),
    ]
    model = add_adapter(base.model, plan)
    inits = _of_adapted(model, base.adapter_inits)
    if plan.init != "zero":
        apply_adapter_inits(model, inits)
        repaired = quality_point("start", evaluator.evaluate(model.eval()))
        if repaired.kl < points[-1].kl:
            points.append(repaired)
        else:  # every layer is nearer to its original and the model is not: seen at rank 8 on a tiny base
            _undo_repair(model)
    if plan.heal:
        _heal(plan, model, base, progress)
        points.append(quality_point("healed", evaluator.evaluate(model.eval())))
    gc.collect()
    return model, inits, tuple(points)


def _of_adapted(model: PeftModel, inits: AdapterInits) -> AdapterInits:
    """Each repairs its own layer, so those of the others can be left out: some were not chosen, and in some mixtures
    not all linears can have one (experts/adapter.py)."""
    base = model.get_base_model()
    return {
        name: ab for name, ab in inits.items() if isinstance(base.get_submodule(name), LoraLayer)
    }


@torch.no_grad()
def _undo_repair(model: PeftModel) -> None:
    """B = 0: the adapter changes nothing, and A still fits the inputs."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.zero_()


def _heal(plan: Plan, model: PeftModel, base: LowBitBase, progress: Progress) -> None:
    learning_rate = default_heal_learning_rate(plan.base.hidden_size)
    recipe = HealRecipe(HEAL_STEPS, HEAL_TOKENS, learning_rate)
    progress("heal", 0, recipe.steps)
    on_gpu = plan.hardware.device == "cuda"
    if on_gpu:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    heal(
        model,
        base.windows,
        base.teacher_states,
        recipe,
        lambda done, total, kl: progress("heal", done, total),
    )
    if on_gpu:
        model.gradient_checkpointing_disable()


def _adapter_tensors(model: PeftModel, inits: AdapterInits) -> dict[str, torch.Tensor]:
    """The adapter as it is now, healed or not, with its scale multiplied into B."""
    base, tensors = model.get_base_model(), {}
    for name in _of_adapted(model, inits):
        layer: Any = base.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        tensors[f"{name}.a"] = a.detach().cpu().contiguous()
        tensors[f"{name}.b"] = (b.detach() * layer.scaling["default"]).cpu().contiguous()
    return tensors


def _read_adapter_inits(file: Path) -> AdapterInits:
    tensors = load_file(file)
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}


def cache_key(*parts: object) -> str:
    """The name of a folder: 24 hex digits of the parts' sha256."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
