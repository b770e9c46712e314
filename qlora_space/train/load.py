"""The model that training starts from: base and adapter, and for low bits the gate before them."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Event, Phase
from qlora_space.data import Prepared
from qlora_space.fast import warm_up
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.lowbit.gate import gate_of, refuse_broken
from qlora_space.model import WEIGHTS_FILE, add_adapter, compute_dtype, save_adapter
from qlora_space.model.load import load_any
from qlora_space.model.low_bit_base import Started, low_bit_base
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder, write_atomically
from qlora_space.train.snapshot import restore_adapter

Emit = Callable[[Event], object]
_WARM_UP_GIB = 2.0  # one layer of a 70B and its weights in bf16


def warm_up_beside(plan: Plan, base_folder: Path) -> Thread | None:
    """Kernels compiled while data and base are read, if there is room for a layer more."""
    spare_gib = plan.hardware.free_gib - plan.estimate.peak_gib
    is_on_gpu = plan.step_kind == "fast" and plan.hardware.device == "cuda"
    return warm_up(base_folder, plan.r) if is_on_gpu and spare_gib >= _WARM_UP_GIB else None


def start_model(
    run: RunFolder, base_folder: Path, prepared: Prepared, tokenizer: Any, emit: Emit
) -> PeftModel:
    """A peft model in its first state. Raises ModelError for a base that its bits broke, or that is another than the
    run started from."""
    plan = run.plan()
    emit(Phase(name="model", done=0, total=1))
    if not plan.is_low_bit:
        model = base_and_adapter(run, base_folder)
    else:
        model = _low_bit_model(run, base_folder, prepared, tokenizer, emit)
    emit(Phase(name="model", done=1, total=1))
    return model


def base_and_adapter(run: RunFolder, base_folder: Path) -> PeftModel:
    """The base that the run has started from, packed where it packed one; the adapter has values of no meaning."""
    plan = run.plan()
    device = plan.hardware.device
    if plan.is_low_bit:
        return add_adapter(load_lowbit(run.packed_folder, device, compute_dtype(device)), plan)
    base = load_any(plan.base, base_folder, plan.bits, device, on_host=plan.cpu_offload)
    return add_adapter(base, plan)


def _low_bit_model(
    run: RunFolder, base_folder: Path, prepared: Prepared, tokenizer: Any, emit: Emit
) -> PeftModel:
    started = low_bit_base(
        run.plan(),
        base_folder,
        prepared,
        tokenizer,
        run.quantized_folder,
        lambda name, done, total: emit(Phase(name=name, done=done, total=total)),  # type: ignore[arg-type]
    )
    gate = gate_of(started.quality)
    emit(gate)
    refuse_broken(gate, started.quality)
    _keep_first(run, started)
    return started.model


def _keep_first(run: RunFolder, started: Started) -> None:
    """What the run started from is written once and holds for every attempt, the name of its packed base last.

    A packed base that was lost and made again may come with another start. Raises ModelError.
    """
    name = run.packed_base_file
    if not name.is_file():
        save_adapter(started.model, run.start_folder)
        write_atomically(name, started.packed.name)
        return
    if name.read_text() != started.packed.name:
        raise ModelError(
            "The base of this run was packed by another version.",
            "Start a new run from its settings.",
        )
    restore_adapter(started.model, load_file(run.start_folder / WEIGHTS_FILE))
