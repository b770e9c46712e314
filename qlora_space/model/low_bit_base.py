"""low_bit_base(): a plan's packed base with the start of its adapter, made once and kept on disk.

    quantized/<base and grid>/                     the packed base: config.json, safetensors
    quantized/<base and grid>/start-<all of it>/   start.safetensors, quality.json

The codes of a base depend on its weights and its grid alone, so that a recipe of two numbers names them. SRR, which
rounds what its own adapter leaves, the GPTQ pass and mixed bits, which go by the calibration text, have packed bases
of their own.
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
from safetensors.torch import load_file, save_file

from qlora_space.core.atomic import whole_folder
from qlora_space.core.events import QualityPoint
from qlora_space.data import Prepared
from qlora_space.lowbit.build import LowBitBase, Recipe, Starts, put_starts, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.gate import ReferenceEvaluator
from qlora_space.lowbit.heal import HealRecipe, heal
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.model import add_adapter, compute_dtype
from qlora_space.model.calibration_text import Texts, texts_for
from qlora_space.plan import Plan
from qlora_space.plan.low_bit import small_base_factor
from qlora_space.runs import QUALITY_FILE, Quality

_VERSION = 1  # of the codes: another search of ranges makes other bases
_START_FILE = "start.safetensors"
Progress = Callable[[str, int, int], object]  # phase ("model" or "heal"), done, total


@dataclass(frozen=True)
class Started:
    """A peft model over a packed base, at step 0, and what it is worth."""

    model: PeftModel
    quality: Quality
    packed: Path


def low_bit_base(
    plan: Plan,
    base_folder: Path,
    prepared: Prepared | None,
    tokenizer: Any,
    quantized_folder: Path,
    progress: Progress,
) -> Started:
    """From disk if it was made before. Raises ModelError, DiskFull."""
    device = plan.hardware.device
    texts = texts_for(
        prepared,
        tokenizer,
        is_demo=plan.base.source == "demo",
        longest=min(plan.max_length, plan.base.max_position_embeddings),
        device=device,
    )
    packed = packed_folder(plan, texts, quantized_folder)
    # A random A, and what a heal learns, depend on more than the repair does.
    is_drawn = plan.heal or plan.init == "zero"
    drawn = (plan.seed, plan.lora_dropout, plan.lora_alpha) if is_drawn else ()
    start = packed / f"start-{key_of(plan.init, plan.heal, plan.r, texts.sha256, *drawn)}"
    if not (start / QUALITY_FILE).is_file():
        return _make(plan, base_folder, texts, packed, start, progress)
    progress("model", 0, 1)
    model = add_adapter(load_lowbit(packed, device, compute_dtype(device)), plan)
    put_starts(model, _read_starts(start / _START_FILE))
    quality = Quality.model_validate_json((start / QUALITY_FILE).read_bytes())
    return Started(model, quality, packed)


def packed_folder(plan: Plan, texts: Texts, quantized_folder: Path) -> Path:
    """Where the packed base of the plan is, or will be."""
    grid = (plan.base.sha, plan.bits, plan.group_size, plan.hardware.device)
    return quantized_folder / key_of(_VERSION, *grid, *_own_parts(plan, texts))


def _own_parts(plan: Plan, texts: Texts) -> tuple[object, ...]:
    if not plan.base_is_own:
        return ()
    by_text = (plan.gptq, plan.mean_bits) if plan.gptq or plan.mean_bits else ()
    # What rounding with the text gives depends on the precision of what it says of the text.
    is_fp32 = compute_dtype(plan.hardware.device) is torch.float32
    precision = ("fp32",) if is_fp32 else ()
    return (plan.r if plan.init == "srr" else 0, texts.sha256, *by_text, *precision)


def _make(
    plan: Plan, base_folder: Path, texts: Texts, packed: Path, start: Path, progress: Progress
) -> Started:
    device = plan.hardware.device
    recipe = Recipe(plan.bits, plan.group_size, plan.init, plan.r, plan.gptq, plan.mean_bits)
    made = quantize_base(
        base_folder,
        recipe,
        texts.windows,
        device=device,
        dtype=compute_dtype(device),
        progress=lambda done, total: progress("model", done, total),
    )
    if not (packed / "config.json").is_file():
        with whole_folder(packed, "The quantized base") as part:
            save_lowbit(made.model, part)
    model, points = _measure_stages(plan, made, texts, progress)
    quality = quality_of(plan, texts, points, _bits_per_weight(model))
    with whole_folder(start, "The quantized base") as part:
        save_file(_start_tensors(model, made.starts), part / _START_FILE)
        (part / QUALITY_FILE).write_text(quality.model_dump_json(indent=1))
    return Started(model, quality, packed)


def quality_of(
    plan: Plan, texts: Texts, points: tuple[QualityPoint, ...], bits_per_weight: float
) -> Quality:
    """What is kept on disk of the points that were measured."""
    return Quality(
        base_id=Path(plan.base.id).name if plan.base.source == "local" else plan.base.id,
        base_sha=plan.base.sha,
        bits=plan.bits,
        init=plan.init,
        heal=plan.heal,
        group_size=plan.group_size,
        mean_bits=plan.mean_bits,
        gptq=plan.gptq,
        r=plan.r,
        bits_per_weight=round(bits_per_weight, 3),
        text=texts.heldout,
        points=points,
    )


def _bits_per_weight(model: PeftModel) -> float:
    packed = [m for m in model.modules() if isinstance(m, LowBitLinear)]
    sizes = [m.in_features * m.out_features for m in packed]
    stored = sum(m.bits_per_weight * size for m, size in zip(packed, sizes, strict=True))
    return stored / sum(sizes)


def _measure_stages(
    plan: Plan, made: LowBitBase, texts: Texts, progress: Progress
) -> tuple[PeftModel, tuple[QualityPoint, ...]]:
    """Measure the quantized base, its start and its heal, in turn."""
    evaluator = ReferenceEvaluator.of(texts.windows, made.teacher, made.model)
    points = [evaluator.reference(), evaluator.measure(made.model.eval(), "quantized")]
    model = add_adapter(made.model, plan)
    if plan.init != "zero":
        put_starts(model, made.starts)
        start = evaluator.measure(model.eval(), "start")
        if start.kl < points[-1].kl:
            points.append(start)
        else:  # every layer is nearer to its original and the model is not: seen at rank 8 on a tiny base
            _take_back(model)
    if plan.heal:
        _heal(plan, model, made, texts, progress)
        points.append(evaluator.measure(model.eval(), "healed"))
    gc.collect()
    return model, tuple(points)


@torch.no_grad()
def _take_back(model: PeftModel) -> None:
    """B = 0: the adapter changes nothing, and A still has what the inputs need."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.zero_()


def _heal(plan: Plan, model: PeftModel, made: LowBitBase, texts: Texts, progress: Progress) -> None:
    recipe = HealRecipe(learning_rate=heal_learning_rate(plan.base.hidden_size))
    progress("heal", 0, recipe.steps)
    on_gpu = plan.hardware.device == "cuda"
    if on_gpu:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    heal(
        model,
        texts.windows,
        made.teacher,
        recipe,
        lambda done, total, kl: progress("heal", done, total),
    )
    if on_gpu:
        model.gradient_checkpointing_disable()


def heal_learning_rate(hidden_size: int) -> float:
    """2e-4, and more for small bases."""
    return 2e-4 * small_base_factor(hidden_size)


def _start_tensors(model: PeftModel, starts: Starts) -> dict[str, torch.Tensor]:
    """The adapter as it is now, unscaled: healed, where it was healed."""
    base, tensors = model.get_base_model(), {}
    for name in starts:
        layer: Any = base.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        tensors[f"{name}.a"] = a.detach().cpu().contiguous()
        tensors[f"{name}.b"] = (b.detach() * layer.scaling["default"]).cpu().contiguous()
    return tensors


def _read_starts(file: Path) -> Starts:
    tensors = load_file(file)
    names = {name.rpartition(".")[0] for name in tensors}
    return {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}


def key_of(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
