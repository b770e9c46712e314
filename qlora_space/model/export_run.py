"""A finished run as one model in a folder, and how far that is from the adapter on the base that it was trained on."""

import gc
import json
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
    LlamaCppCheck,
)
from qlora_space.core.options import Format
from qlora_space.data import load_tokenizer
from qlora_space.data.template.renderer import Renderer
from qlora_space.hub import fetch_base
from qlora_space.hub.download import TOKENIZER_FILES
from qlora_space.lowbit.architecture import GENERATION_CONFIG, default_device
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.lowbit.gptq_format import load_gptq
from qlora_space.model.adapter import load_adapter
from qlora_space.model.agreement import AnsweredRow, agreement, answer_logits, answered_rows
from qlora_space.model.base import compute_dtype, explains_out_of_memory
from qlora_space.model.export_gguf import write_modelfile
from qlora_space.model.gguf import (
    converters,
    copy_for_converter,
    write_gguf,
    write_gguf_adapter,
)
from qlora_space.model.gptq import check_gptq, pack_gptq
from qlora_space.model.load import load_frozen_base
from qlora_space.model.merge import frozen_weights, merge, original_weights
from qlora_space.model.spoken import (
    PROMPTS,
    Spoken,
    can_ask_llama_cpp,
    llama_cpp_check,
    spoken_answers,
)
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.runs.export import export_for_16_bit

_T = TypeVar("_T")
_Steps = Generator[Exporting, None, _T]  # yields progress
_NO_ROWS = "the run has no rows left to compare on"
_NO_ROOM = "the model does not fit into this machine's memory in 16 bits"


@dataclass(frozen=True)
class _Asked:
    """One export, and where it is made."""

    run: RunFolder
    plan: Plan
    options: ExportOptions
    base_folder: Path
    dtype: torch.dtype
    device: str


@dataclass
class _Reference:
    """What the adapter answers on the base that it was trained on."""

    rows: list[AnsweredRow]
    logits: list[torch.Tensor]
    spoken: list[Spoken]


def export_run(
    run: RunFolder, options: ExportOptions, folder: Path, token: str | None
) -> Iterator[Exporting | Exported]:
    """Write the export into `folder`, which appears whole or not at all, and say what was found of it.

    Raises RunError, RequestError, ModelError, HubError, BackendError, OutOfMemory, DiskFull.
    """
    plan = run.plan()
    _check(run, plan, options)
    device = default_device() if plan.hardware.device == "cuda" else "cpu"
    yield Exporting(text=f"Reading {plan.base.id}")
    base_folder = fetch_base(plan.base, token)
    asked = _Asked(run, plan, options, base_folder, merged_dtype(base_folder), device)
    reference = _Reference(answered_rows(run.data_folder) if options.measure else [], [], [])
    with whole_folder(folder, "The export", needed_bytes=_needed_bytes(plan, options)) as part:
        if options.format == "gguf-adapter":
            agreement_found, why = None, "llama.cpp was not asked"
            check = yield from _gguf_adapter(asked, part, reference)
        else:
            agreement_found, why = yield from _model(asked, part, reference)
            check = None
            if options.format == "gguf":
                check = yield from _gguf(asked, part, reference)
        if not options.measure:
            why = "not asked for"
        done = _exported(part, options, asked.dtype, agreement_found, why, check)
        (part / EXPORT_FILE).write_text(done.model_dump_json(indent=1))
    yield done


def _needed_bytes(plan: Plan, options: ExportOptions) -> int:
    """On disk while it is made."""
    in_16_bits = 2 * (plan.base.parameters + plan.base.left_out_parameters)
    if options.format == "gguf":
        return in_16_bits * 2
    return in_16_bits if options.measure or options.format != "gguf-adapter" else 2**28


def _model(
    asked: _Asked, part: Path, reference: _Reference
) -> _Steps[tuple[Agreement | None, str]]:
    """A checkpoint of transformers in `part`; yields progress, returns how far it is from the adapter, or why that is
    not known."""
    yield from _merged(asked, part, reference)
    _finish(asked.run, part)
    if asked.options.format == "merged-nf4":
        yield Exporting(text="Packing it to 4 bits")
        _pack_nf4(asked, part)
    if asked.options.format == "merged-gptq":
        yield Exporting(text=f"Packing it to {asked.options.gptq_bits} bits, calibrated")
        with explains_out_of_memory("Packing"):
            pack_gptq(asked.run, asked.options.gptq_bits, part, asked.device)
    yield Exporting(text="Comparing it with the adapter on its base")
    return _measured(asked, part, reference)


def _gguf(asked: _Asked, part: Path, reference: _Reference) -> _Steps[LlamaCppCheck | None]:
    """Put one file and a Modelfile in the place of the checkpoint in `part`."""
    yield Exporting(text="Writing GGUF")
    file, sources = part / "model.gguf", list(part.iterdir())
    with tempfile.TemporaryDirectory(dir=part) as scratch:
        for source in sources:
            source.rename(Path(scratch) / source.name)
        write_gguf(Path(scratch), file, asked.options.gguf_type)
    write_modelfile(asked.run, asked.base_folder, part / "Modelfile", f"./{file.name}")
    if reference.spoken:
        yield Exporting(text="Asking llama.cpp")
    return llama_cpp_check(file, reference.spoken)


def _gguf_adapter(asked: _Asked, part: Path, reference: _Reference) -> _Steps[LlamaCppCheck | None]:
    """The adapter for a 16-bit GGUF of the base, which is made to ask llama.cpp and not kept."""
    file, run = part / "adapter.gguf", asked.run
    with tempfile.TemporaryDirectory(dir=part) as scratch:
        base = copy_for_converter(asked.base_folder, _new(Path(scratch) / "base"))
        yield Exporting(text="Writing GGUF")
        adapter = _adapter_for(asked, _new(Path(scratch) / "adapter"))
        write_gguf_adapter(adapter, base, file)
        base_file = f"./{Path(asked.plan.base.id).name}-f16.gguf"  # which the person has or makes
        write_modelfile(run, asked.base_folder, part / "Modelfile", base_file, f"./{file.name}")
        if not (reference.rows and can_ask_llama_cpp() and run.heldout_questions(1)):
            return None
        _answer(asked, trained_base(run, asked.base_folder, asked.device), reference)
        yield Exporting(text="Writing the base as GGUF to ask llama.cpp")
        write_gguf(base, base / "base.gguf", "f16")
        return llama_cpp_check(base / "base.gguf", reference.spoken, file)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
    if options.format == "gguf-adapter" and options.onto == "trained":
        raise RequestError(
            "onto is 'trained', but a GGUF adapter stands on the original base.", "Leave it out."
        )
    if options.format == "merged-nf4" and not options.merges_into_original and plan.bits < 16:
        raise RequestError(
            "onto is 'trained', but packing weights to NF4 that were packed before rounds the adapter away.",
            "Leave it out: the 16-bit base is merged into.",
        )
    if options.is_gguf:
        converters()
    if options.format == "merged-gptq":
        check_gptq(plan.base, plan.group_size)
    if options.format == "gguf-adapter" and plan.use_dora:
        raise RequestError(
            "This adapter is DoRA, which llama.cpp does not read.", "Export it as gguf, merged."
        )
    is_packed_only = plan.base.quantization or plan.base.read_as
    if options.merges_into_original and is_packed_only:
        raise RequestError(
            f"{plan.base.id} has no 16-bit weights to merge into.",
            "Export it as merged, into the base as it was trained on.",
        )
    run.check_base()


def _merged(asked: _Asked, part: Path, reference: _Reference) -> _Steps[None]:
    """Write the merged checkpoint, and let the adapter answer on the base that it was trained on."""
    is_original, run = asked.options.merges_into_original, asked.run
    base = None
    if reference.rows or not is_original:
        base = trained_base(run, asked.base_folder, asked.device)
    with tempfile.TemporaryDirectory() as scratch, explains_out_of_memory("Merging"):
        adapter = _adapter_for(asked, Path(scratch))
        weights = (
            original_weights(asked.base_folder)
            if base is None or is_original
            else frozen_weights(base)
        )
        for done, total in merge(weights, adapter, asked.base_folder, part, asked.dtype):
            yield Exporting(text="Merging", done=done, total=total)
    if base is not None and reference.rows:
        yield Exporting(text="Answering held-out prompts with the adapter")
        _answer(asked, base, reference)


def _adapter_for(asked: _Asked, scratch: Path) -> Path:
    """The adapter's folder; for the original base without the repair of the low-bit one, in `scratch`."""
    if not (asked.options.merges_into_original and asked.plan.is_low_bit):
        return asked.run.adapter_folder
    export_for_16_bit(asked.run, scratch)
    return scratch


def _answer(asked: _Asked, base: PreTrainedModel, reference: _Reference) -> None:
    """Fill the reference."""
    model = load_adapter(base, asked.run.adapter_folder)
    reference.logits = answer_logits(model, reference.rows)
    if asked.options.is_gguf and asked.plan.dataset.format != Format.TEXT:
        tokenizer = load_tokenizer(asked.base_folder)
        renderer = Renderer(tokenizer, Format(asked.plan.dataset.format))
        questions = asked.run.heldout_questions(PROMPTS)
        stops = asked.run.stop_token_ids()
        reference.spoken = spoken_answers(model, tokenizer, renderer, questions, stops)


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


def _pack_nf4(asked: _Asked, part: Path) -> None:
    """Put the checkpoint that transformers writes of it in 4 bits in the place of the 16-bit one."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=asked.dtype,
    )  # fmt: skip
    model = load_merged(asked.plan, part, asked.dtype, asked.device, quantization_config=nf4)
    for file in part.glob("model*.safetensors*"):
        file.unlink()
    model.save_pretrained(part)


def _measured(asked: _Asked, part: Path, reference: _Reference) -> tuple[Agreement | None, str]:
    """What plain transformers answers, of GPTQ's format our own reader, compared; or why it was not."""
    if not reference.rows:
        return None, _NO_ROWS
    gc.collect()
    if asked.device == "cuda":
        torch.cuda.empty_cache()
    try:
        if asked.options.format == "merged-gptq":  # transformers asks for two more packages
            model = load_gptq(part, asked.device, compute_dtype(asked.device))
        else:
            model = load_merged(asked.plan, part, asked.dtype, asked.device)
        with explains_out_of_memory("Comparing"):
            found = answer_logits(model, reference.rows)
    except OutOfMemory:
        return None, _NO_ROOM
    return agreement(reference.rows, reference.logits, found), ""


def _exported(
    part: Path,
    options: ExportOptions,
    dtype: torch.dtype,
    found: Agreement | None,
    why: str,
    check: LlamaCppCheck | None,
) -> Exported:
    files = sorted(p for p in part.iterdir() if p.is_file())
    return Exported(
        options=options,
        dtype=options.gguf_type if options.format == "gguf" else str(dtype).removeprefix("torch."),
        num_bytes=sum(file.stat().st_size for file in files),
        files=tuple(file.name for file in files),
        agreement=found,
        why_not_measured=why,
        llama_cpp=check,
        time=time.time(),
    )
