"""The model that training starts from: base and adapter, and for low bits the gate before them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file

from qlora_space.data import Prepared
from qlora_space.errors import ModelError
from qlora_space.events import Event, Phase
from qlora_space.lowbit.base import Started, low_bit_base
from qlora_space.lowbit.gate import gate_of, refuse_broken
from qlora_space.lowbit.load import load_any
from qlora_space.model import WEIGHTS_FILE, add_adapter, save_adapter
from qlora_space.runs import RunFolder, write_atomically
from qlora_space.train.snapshot import restore_adapter

Emit = Callable[[Event], object]


def start_model(
    run: RunFolder, base_folder: Path, prepared: Prepared, tokenizer: Any, emit: Emit
) -> PeftModel:
    """A peft model in its first state. Raises ModelError for a base that its bits broke, or that is another than the
    run started from."""
    plan = run.plan()
    emit(Phase(name="model", done=0, total=1))
    if not plan.is_low_bit:
        model = add_adapter(load_any(plan.base, base_folder, plan.bits, plan.hardware.device), plan)
    else:
        model = _low_bit_model(run, base_folder, prepared, tokenizer, emit)
    emit(Phase(name="model", done=1, total=1))
    return model


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
