"""The model that training starts from: base and adapter, and for low bits the gate before them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel

from qlora_space.data import Prepared
from qlora_space.events import Event, Phase
from qlora_space.lowbit.base import low_bit_base
from qlora_space.lowbit.gate import gate_of, refuse_broken
from qlora_space.lowbit.load import load_any
from qlora_space.model import add_adapter, save_adapter
from qlora_space.runs import RunFolder

Emit = Callable[[Event], object]


def start_model(
    run: RunFolder, base_folder: Path, prepared: Prepared, tokenizer: Any, emit: Emit
) -> PeftModel:
    """A peft model in its first state. Raises ModelError for a base that its bits broke."""
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
    save_adapter(started.model, run.start_folder)
    (run.start_folder / "packed_base").write_text(started.packed.name)
    return started.model
