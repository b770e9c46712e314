"""The model before the first step: base and adapter, and for low bits the gate."""

from pathlib import Path
from threading import Thread
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file

from qlora_space.core.errors import ModelError
from qlora_space.data import Prepared
from qlora_space.fast import warm_up
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.model import WEIGHTS_FILE, add_adapter, compute_dtype, save_adapter
from qlora_space.model.gate import gate_of, require_sound_base
from qlora_space.model.load import load_frozen_base
from qlora_space.model.loaded import loaded_base, require_as_planned, require_separate_documents
from qlora_space.model.low_bit_base import PreparedBase, prepare_low_bit_base
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder, write_atomically
from qlora_space.train.context import RunContext
from qlora_space.train.snapshot import restore_adapter

_WARM_UP_GIB = 2.0  # one layer of a 70B and its weights in bf16


def warm_up_in_background(plan: Plan, base_folder: Path) -> Thread | None:
    """Compile the kernels while data and base are loaded, if there is room for one layer more: none of a mixture, whose
    experts would be there in 16 bits."""
    spare_gib = plan.hardware.free_gib - plan.estimate.least_gib
    is_on_gpu = plan.step_kind == "fast" and plan.hardware.device == "cuda"
    has_room = spare_gib >= _WARM_UP_GIB and not plan.base.num_experts
    return warm_up(base_folder, plan.r) if is_on_gpu and has_room else None


def load_model(
    context: RunContext, base_folder: Path, prepared: Prepared, tokenizer: Any
) -> PeftModel:
    """Base and adapter before the first step. Raises ModelError for a base that its bits broke, that did not come out
    as planned, or that is another one than the run started from."""
    context.phase("model", 0, 1)
    if context.plan.is_low_bit:
        model = _low_bit_model(context, base_folder, prepared, tokenizer)
    else:
        model = base_and_adapter(context.run, base_folder)
        if context.plan.adapter:
            _go_on_from(context, model)
    _check(context, model)
    context.phase("model", 1, 1)
    return model


def _check(context: RunContext, model: PeftModel) -> None:
    """What was loaded is what was planned, and is told. Raises ModelError."""
    loaded, plan = loaded_base(model), context.plan
    require_as_planned(loaded, plan.base, plan.mean_width)
    if plan.packing and plan.bits != 8:  # whose products take outliers over the whole batch
        dtype = compute_dtype(plan.hardware.device)
        with torch.autocast(plan.hardware.device, dtype, enabled=dtype is not torch.float32):
            require_separate_documents(model, plan.base)
    context.note(loaded.in_words(plan.mean_width))


def _go_on_from(context: RunContext, model: PeftModel) -> None:
    """Give the adapter the values that training goes on from. Raises ModelError if they do not fit, or are gone: a
    run that came back from its copy on the Hub before its first checkpoint."""
    file, name = context.run.start_folder / WEIGHTS_FILE, context.plan.adapter
    if not file.is_file():
        raise ModelError(
            f"The copy of {name} that this run starts from is gone.", "Start a new run like it."
        )
    weights = load_file(file)
    if not all(torch.isfinite(weight).all() for weight in weights.values()):
        raise ModelError(
            f"{name} has weights that are not finite numbers.", "Choose another adapter."
        )
    try:
        restore_adapter(model, weights)
    except ModelError as error:
        why = error.what.partition(": ")[2] or error.what
        raise ModelError(
            f"Training cannot go on from {name}: {why}", "Choose another adapter."
        ) from None
    context.note(f"Training goes on from {name}.")


def base_and_adapter(run: RunFolder, base_folder: Path) -> PeftModel:
    """The base that the run has started from, packed where it packed one; the adapter has values of no meaning."""
    plan = run.plan()
    device = plan.hardware.device
    if plan.is_low_bit:
        return add_adapter(load_lowbit(run.packed_folder, device, compute_dtype(device)), plan)
    base = load_frozen_base(plan.base, base_folder, plan.bits, device, on_host=plan.cpu_offload)
    return add_adapter(base, plan)


def _low_bit_model(
    context: RunContext, base_folder: Path, prepared: Prepared, tokenizer: Any
) -> PeftModel:
    base = prepare_low_bit_base(
        context.plan, base_folder, prepared, tokenizer, context.run.quantized_folder, context.phase
    )
    gate = gate_of(base.quality)
    context.emit(gate)
    require_sound_base(gate, base.quality)
    _keep_first(context.run, base)
    return base.model


def _keep_first(run: RunFolder, base: PreparedBase) -> None:
    """What the run started from is written once and holds for every attempt, the name of its packed base last.

    A packed base that was lost and made again may come with another start. Raises ModelError.
    """
    name = run.packed_base_file
    if not name.is_file():
        save_adapter(base.model, run.start_folder)
        write_atomically(name, base.packed.name)
        return
    if name.read_text() != base.packed.name:
        raise ModelError(
            "The base of this run was packed by another version.",
            "Start a new run from its settings.",
        )
    restore_adapter(base.model, load_file(run.start_folder / WEIGHTS_FILE))
