"""Bases in GPTQ's format: calibrated with whole zeros from the start, as others load them without this package."""

import shutil
from pathlib import Path

import torch

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.data import load_tokenizer
from qlora_space.data.prepared import load_prepared
from qlora_space.hub import fetch_base
from qlora_space.hub.download import TOKENIZER_FILES
from qlora_space.lowbit.build import LowBitBase, Recipe, quantize_base
from qlora_space.lowbit.gptq_format import save_gptq
from qlora_space.lowbit.linear import bits_per_weight
from qlora_space.lowbit.repair import add_repair
from qlora_space.model.base import compute_dtype, explains_out_of_memory
from qlora_space.model.calibration_text import Calibration, calibration_for
from qlora_space.model.gate import quality_point
from qlora_space.model.low_bit_base import quality_of
from qlora_space.model.measure_base import plan_without_data
from qlora_space.plan import Plan
from qlora_space.plan.low_bit import check_group_size
from qlora_space.runs import Quality, RunFolder

REPAIR_FOLDER = "repair"  # in the folder of a base: an adapter of peft


def check_gptq(base: ModelFacts, group_size: int) -> None:
    """Raises RequestError for a base that the format, or those who load it, have no place for."""
    if base.is_wrapper or base.num_experts:
        kind = "a mixture of experts" if base.num_experts else "a text model inside of another one"
        raise RequestError(
            f"{base.id} is {kind}, which is not written in GPTQ's format here.",
            "Choose another format.",
        )
    check_group_size(base, group_size)


def pack_gptq(run: RunFolder, bits: int, folder: Path, device: str) -> None:
    """Put a 16-bit checkpoint of `run`'s merged model in `folder` into GPTQ's format, by the text that the run was
    trained on. Raises ModelError, OutOfMemory."""
    plan = run.plan()
    calibration = calibration_for(
        load_prepared(run.data_folder),
        load_tokenizer(folder),
        is_demo=plan.base.source == "demo",
        longest=min(plan.max_length, plan.base.max_position_embeddings),
        device=device,
    )
    recipe = Recipe(bits, plan.group_size, init="zero", whole_zeros=True)
    base = quantize_base(
        folder, recipe, calibration.windows, device=device, dtype=compute_dtype(device)
    )
    save_gptq(base.model, folder)


def write_gptq_base(
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    folder: Path,
    token: str | None,
) -> Quality:
    """A base calibrated on general text, its tokenizer, and in repair/ the adapter of `init`, into an empty `folder`;
    measured as it is there.

    Raises RequestError, ModelError, HubError, OutOfMemory.
    """
    if request.heal or request.mean_bits or request.base_gib or request.calibrated is False:
        raise RequestError(
            "GPTQ's format holds one width, calibrated.",
            "Leave heal, mean_bits, base_gib and no-calibrated out.",
        )
    plan = plan_without_data(request.model_copy(update={"calibrated": True}), base, hardware)
    check_gptq(base, plan.group_size)
    source, device = fetch_base(base, token), plan.hardware.device
    longest = min(plan.max_length, base.max_position_embeddings)
    calibration = calibration_for(
        None, load_tokenizer(source), is_demo=base.source == "demo", longest=longest, device=device
    )
    recipe = Recipe(plan.bits, plan.group_size, plan.init, plan.r, whole_zeros=True)
    with explains_out_of_memory("Quantizing"):
        packed = quantize_base(
            source, recipe, calibration.windows, device=device, dtype=compute_dtype(device)
        )
        quality = _measured(plan, packed, calibration, folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return quality


@torch.no_grad()
def _measured(plan: Plan, packed: LowBitBase, calibration: Calibration, folder: Path) -> Quality:
    """Write base and repair; how far both are from 16 bits."""
    evaluator = packed.evaluator()
    points = [
        quality_point("16 bit", evaluator.reference()),
        quality_point("quantized", evaluator.evaluate(packed.model)),
    ]
    stored_bits = bits_per_weight(packed.model)
    save_gptq(packed.model, folder)
    if plan.init != "zero":
        model = add_repair(packed)
        repaired = quality_point("start", evaluator.evaluate(model))
        if repaired.kl < points[-1].kl:
            points.append(repaired)
            # peft would name the folder of this machine that the 16-bit base was read from.
            model.peft_config["default"].base_model_name_or_path = Path(plan.base.id).name
            model.peft_config["default"].revision = None
            model.save_pretrained(str(folder / REPAIR_FOLDER))
            (folder / REPAIR_FOLDER / "README.md").unlink(
                missing_ok=True
            )  # peft's, without content
    return quality_of(plan, calibration, tuple(points), stored_bits)
