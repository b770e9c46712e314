"""A finished run as one model in a folder, and how far that is from the adapter on the base that it was trained on."""

import gc
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from qlora_space.core.atomic import whole_folder
from qlora_space.core.errors import OutOfMemory, RequestError, RunError
from qlora_space.core.export import (
    EXPORT_FILE,
    Agreement,
    Exported,
    Exporting,
    ExportOptions,
)
from qlora_space.hub import fetch_base
from qlora_space.hub.download import TOKENIZER_FILES
from qlora_space.lowbit.architecture import GENERATION_CONFIG, default_device
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.model.adapter import load_adapter
from qlora_space.model.agreement import AnsweredRow, agreement, answer_logits, answered_rows
from qlora_space.model.base import compute_dtype, explains_out_of_memory
from qlora_space.model.load import load_frozen_base
from qlora_space.model.merge import frozen_weights, merge, original_weights
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.runs.export import export_for_16_bit

_NO_ROWS = "the run has no rows left to compare on"
_NO_ROOM = "the model does not fit into this machine's memory in 16 bits"


def export_run(
    run: RunFolder, options: ExportOptions, folder: Path, token: str | None
) -> Iterator[Exporting | Exported]:
    """Write the export into `folder`, which appears whole or not at all, and say what was found of it.

    Raises RunError, RequestError, ModelError, HubError, OutOfMemory, DiskFull.
    """
    plan = run.plan()
    _check(run, plan, options)
    device = default_device() if plan.hardware.device == "cuda" else "cpu"
    yield Exporting(text=f"Reading {plan.base.id}")
    base_folder = fetch_base(plan.base, token)
    dtype = merged_dtype(base_folder)
    needed = 2 * (plan.base.parameters + plan.base.left_out_parameters)
    rows = answered_rows(run.data_folder) if options.measure else []
    with whole_folder(folder, "The export", needed_bytes=needed) as part:
        logits = yield from _merged(run, plan, options, base_folder, part, dtype, device, rows)
        _finish(run, part)
        if options.format == "merged-nf4":
            yield Exporting(text="Packing it to 4 bits")
            _pack_nf4(plan, part, dtype, device)
        yield Exporting(text="Comparing it with the adapter on its base")
        found, why = _measured(plan, part, dtype, device, rows, logits)
        if not options.measure:
            why = "not asked for"
        done = _exported(part, options, dtype, found, why)
        (part / EXPORT_FILE).write_text(done.model_dump_json(indent=1))
    yield done


def merged_dtype(base_folder: Path) -> torch.dtype:
    """fp16 where the base's files say so, else bf16."""
    config = json.loads((base_folder / "config.json").read_bytes())
    text = config.get("text_config") or {}
    names = (owner.get(n) for owner in (config, text) for n in ("dtype", "torch_dtype"))
    return torch.float16 if "float16" in names else torch.bfloat16


def _check(run: RunFolder, plan: Plan, options: ExportOptions) -> None:
    if not run.has_adapter:
        raise RunError(
            "This run has no finished adapter.",
            "Wait until it is done, or stop it and keep the adapter.",
        )
    if options.format == "merged-nf4" and not options.merges_into_original and plan.bits < 16:
        raise RequestError(
            "onto is 'trained', but packing weights to NF4 that were packed before rounds the adapter away.",
            "Leave it out: the 16-bit base is merged into.",
        )
    is_packed_only = plan.base.quantization or plan.base.read_as
    if options.merges_into_original and is_packed_only:
        raise RequestError(
            f"{plan.base.id} has no 16-bit weights to merge into.",
            "Export it as merged, into the base as it was trained on.",
        )
    run.check_base()


def _merged(  # noqa: PLR0913 - what one merge is made of
    run: RunFolder,
    plan: Plan,
    options: ExportOptions,
    base_folder: Path,
    part: Path,
    dtype: torch.dtype,
    device: str,
    rows: list[AnsweredRow],
) -> Any:
    """Yields progress; returns the adapter's own logits on the base that it was trained on, one tensor a row."""
    is_original, adapter = options.merges_into_original, run.adapter_folder
    logits: list[torch.Tensor] = []
    base = None if is_original and not rows else trained_base(run, base_folder, device)
    with tempfile.TemporaryDirectory() as scratch, explains_out_of_memory("Merging"):
        if is_original and plan.is_low_bit:
            adapter = Path(scratch)
            export_for_16_bit(run, adapter)
        weights = original_weights(base_folder) if is_original else frozen_weights(_there(base))
        for done, total in merge(weights, adapter, base_folder, part, dtype):
            yield Exporting(text="Merging", done=done, total=total)
        if rows:
            yield Exporting(text="Answering held-out prompts with the adapter")
            model = load_adapter(_there(base), run.adapter_folder)
            logits = answer_logits(model, rows)
    return logits


def _there(base: PreTrainedModel | None) -> PreTrainedModel:
    assert base is not None
    return base


def trained_base(run: RunFolder, base_folder: Path, device: str) -> PreTrainedModel:
    """The frozen base as in training. Raises ModelError, OutOfMemory."""
    plan, dtype = run.plan(), compute_dtype(device)
    if not plan.is_low_bit:
        on_host = plan.cpu_offload and device == "cuda"
        return load_frozen_base(plan.base, base_folder, plan.bits, device, on_host=on_host)
    if run.has_packed_base:
        return load_lowbit(run.packed_folder, device, dtype)
    return pack_base(base_folder, plan.bits, plan.group_size, device, dtype)


def _finish(run: RunFolder, part: Path) -> None:
    """The tokenizer of the adapter, and the ends of the answers that it was trained on."""
    for name in TOKENIZER_FILES:
        if (run.adapter_folder / name).is_file():
            shutil.copyfile(run.adapter_folder / name, part / name)
    file = part / GENERATION_CONFIG
    stated = json.loads(file.read_bytes()) if file.is_file() else {}
    config = json.loads((part / "config.json").read_bytes())
    ends = stated.get("eos_token_id", config.get("eos_token_id"))
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    stated["eos_token_id"] = list(dict.fromkeys([*known, *run.stop_token_ids()]))
    file.write_text(json.dumps(stated, indent=1))


def load_merged(plan: Plan, folder: Path, dtype: torch.dtype, device: str, **more: Any) -> Any:
    """By transformers alone, as others load it. Raises OutOfMemory."""
    auto: Any = AutoModelForImageTextToText if plan.base.is_wrapper else AutoModelForCausalLM
    if plan.base.eager_attention:
        more["attn_implementation"] = "eager"
    with explains_out_of_memory("Loading the merged model"):
        return auto.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, local_files_only=True, **more
        )


def _pack_nf4(plan: Plan, part: Path, dtype: torch.dtype, device: str) -> None:
    """Put the checkpoint that transformers writes of it in 4 bits in the place of the 16-bit one."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    model = load_merged(plan, part, dtype, device, quantization_config=nf4)
    for file in part.glob("model*.safetensors*"):
        file.unlink()
    model.save_pretrained(part)


def _measured(
    plan: Plan,
    part: Path,
    dtype: torch.dtype,
    device: str,
    rows: list[AnsweredRow],
    logits: list[torch.Tensor],
) -> tuple[Agreement | None, str]:
    """What plain transformers answers, compared; or why it was not."""
    if not rows:
        return None, _NO_ROWS
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    try:
        found = answer_logits(load_merged(plan, part, dtype, device), rows)
        return agreement(rows, logits, found), ""
    except OutOfMemory:
        return None, _NO_ROOM


def _exported(
    part: Path, options: ExportOptions, dtype: torch.dtype, found: Agreement | None, why: str
) -> Exported:
    files = sorted(p for p in part.iterdir() if p.is_file())
    return Exported(
        options=options,
        dtype=str(dtype).removeprefix("torch."),
        num_bytes=sum(file.stat().st_size for file in files),
        files=tuple(file.name for file in files),
        agreement=found,
        why_not_measured=why,
        time=time.time(),
    )
