"""measure_base(): what few bits cost on a base without a dataset, calibrated and evaluated on general text."""

from pathlib import Path
from typing import Any

from qlora_space.core.atomic import whole_folder
from qlora_space.core.errors import RequestError
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.request import TrainingRequest
from qlora_space.data import load_tokenizer
from qlora_space.hub import fetch_base
from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.evaluate import ReferenceEvaluator
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.stream import CalibrationStream
from qlora_space.model.base import compute_dtype, explains_out_of_memory, load_base
from qlora_space.model.calibration_text import Calibration, calibration_for
from qlora_space.model.gate import quality_point
from qlora_space.model.low_bit_base import (
    cache_key,
    prepare_low_bit_base,
    quality_of,
)
from qlora_space.plan import Plan, resolve
from qlora_space.plan.memory import bits_per_weight
from qlora_space.runs import QUALITY_FILE, Quality

_NO_ROWS = DatasetFacts(
    id="general text", sha="", format="text", num_rows=1, is_exact=True,
    lengths=TokenLengths(p50=512, p95=512, max=512, mean=512, truncated_fraction=0, trained_fraction=1),
)  # fmt: skip


def measure_base(
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    quantized_folder: Path,
    token: str | None,
) -> Quality:
    """Stored on disk like that of a run. Raises RequestError, ModelError, HubError, DiskFull, OutOfMemory."""
    plan = plan_without_data(request, base, hardware)
    folder = fetch_base(base, token)
    tokenizer = load_tokenizer(folder)
    with explains_out_of_memory("Quantizing"):
        if not plan.is_low_bit:
            return _measure_nf4(plan, folder, tokenizer, quantized_folder)
        prepared = prepare_low_bit_base(
            plan, folder, None, tokenizer, quantized_folder, lambda *_: None
        )
    return prepared.quality


def plan_without_data(request: TrainingRequest, base: ModelFacts, hardware: Hardware) -> Plan:
    """Raises RequestError."""
    if request.bits > 4:
        raise RequestError(
            f"bits is {request.bits}: 8 bits and more lose next to nothing.", "Ask for 4, 3 or 2."
        )
    return resolve(request, base, _NO_ROWS, hardware)


def _measure_nf4(plan: Plan, folder: Path, tokenizer: Any, quantized_folder: Path) -> Quality:
    """Four bits without a repair are trained as NF4, so NF4 is measured."""
    device = plan.hardware.device
    longest = min(plan.max_length, plan.base.max_position_embeddings)
    is_demo = plan.base.source == "demo"
    calibration = calibration_for(None, tokenizer, is_demo=is_demo, longest=longest, device=device)
    stored = (
        quantized_folder
        / cache_key("nf4", plan.base.sha, device)
        / f"start-{calibration.sha256[:24]}"
    )
    if (stored / QUALITY_FILE).is_file():
        return Quality.model_validate_json((stored / QUALITY_FILE).read_bytes())
    evaluator = _reference_evaluator(folder, calibration, device)
    points = (
        quality_point("16 bit", evaluator.reference()),
        quality_point("quantized", evaluator.evaluate(load_base(folder, plan.bits, device).eval())),
    )
    quality = quality_of(plan, calibration, points, bits_per_weight(plan.bits))
    with whole_folder(stored, "The quantized base") as part:
        (part / QUALITY_FILE).write_text(quality.model_dump_json(indent=1))
    return quality


def _reference_evaluator(folder: Path, calibration: Calibration, device: str) -> ReferenceEvaluator:
    """The 16-bit model's hidden states, computed block by block."""
    model, windows = empty_model(folder), calibration.windows
    stream = CalibrationStream(model, Shards(folder, model), windows, device, compute_dtype(device))
    for block in stream:
        model.get_submodule(block.name).to("meta")
    return ReferenceEvaluator.on_heldout(windows, stream.hidden_states, model)
