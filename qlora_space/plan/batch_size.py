"""How many rows at once, with which optimizer and step: what fits into the memory that is free."""

import math
from dataclasses import dataclass, replace

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.plan.choices import Choices
from qlora_space.plan.memory import estimate_memory, host_gib
from qlora_space.plan.plan import MemoryPart, Optim
from qlora_space.plan.step_kind import why_plain

SAFETY = 0.92  # share of the free memory that a plan may use
_ROWS_PER_UPDATE = 16  # QLoRA's batch size, arXiv 2305.14314, table 9
_MIN_UPDATES_PER_RUN = 250


@dataclass(frozen=True)
class Batch:
    """Rows and what a step takes with them."""

    per_device: int
    accumulation: int
    num_processes: int
    gradient_checkpointing: bool
    optim: Optim
    is_fast: bool
    is_fp8: bool
    cpu_offload: bool
    parts: tuple[MemoryPart, ...]


def choose_batch(  # noqa: PLR0913
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    max_length: int,
    r: int,
    packed_rows: float,
    choices: Choices,
    *,
    is_packed: bool = False,
) -> Batch:
    """Rows per update from the amount of data, then as many at once as fit, checkpointing if it must."""
    wanted = max(1, min(_ROWS_PER_UPDATE, int(packed_rows / _MIN_UPDATES_PER_RUN)))
    is_fast = _is_fast(request, base, hardware, r, choices)
    needs = _Needs(request, base, hardware, max_length, r, is_fast, is_packed)
    if cpu_offload := _cpu_offload(needs, choices):
        needs = replace(needs, cpu_offload=True)
        copies = int(_host_room_gib(hardware) / host_gib(base))  # each GPU reads one of its own
        hardware = hardware.model_copy(update={"num_gpus": min(hardware.num_gpus, copies)})
    num_processes = _num_processes(request, hardware, wanted, choices, is_fast=is_fast)
    at_once = request.per_device_train_batch_size or math.ceil(wanted / num_processes)
    optim = _optim(needs, at_once, choices)
    checkpointing = _checkpointing(needs, at_once, optim, choices)
    per_device = _per_device(needs, at_once, optim, checkpointing, choices)
    accumulation = choices.pick(
        "gradient_accumulation_steps",
        request.gradient_accumulation_steps,
        math.ceil(wanted / (per_device * num_processes)),
        f"{wanted} rows an update for this much data",
    )
    is_fp8 = request.fp8 and _can_fp8(hardware, choices, is_fast=is_fast)
    return Batch(
        per_device=per_device,
        accumulation=accumulation,
        num_processes=num_processes,
        gradient_checkpointing=checkpointing,
        optim=optim,
        is_fast=is_fast,
        is_fp8=is_fp8,
        cpu_offload=cpu_offload,
        parts=needs.parts(per_device, checkpointing, optim),
    )


@dataclass(frozen=True)
class _Needs:
    """Memory of a way to train, and whether there is as much."""

    request: TrainingRequest
    base: ModelFacts
    hardware: Hardware
    max_length: int
    r: int
    is_fast: bool
    is_packed: bool
    cpu_offload: bool = False

    def parts(self, rows: int, checkpointing: bool, optim: Optim) -> tuple[MemoryPart, ...]:
        return estimate_memory(
            self.base,
            self.hardware,
            bits=self.request.mean_bits or self.request.bits,
            group_size=self.request.group_size,
            is_packed=self.is_packed,
            r=self.r,
            tokens_at_once=rows * self.max_length,
            max_length=self.max_length,
            gradient_checkpointing=checkpointing,
            optim=optim,
            is_fast=self.is_fast,
            cpu_offload=self.cpu_offload,
        )

    def fits(self, rows: int, checkpointing: bool, optim: Optim) -> bool:
        needed = sum(part.gib for part in self.parts(rows, checkpointing, optim))
        return needed <= self.hardware.free_gib * SAFETY


def _cpu_offload(needs: _Needs, choices: Choices) -> bool:
    """Packed weights in host memory, where the whole GPU does not hold base and one row, and does so."""
    is_possible = needs.is_fast and needs.request.bits == 4 and not needs.is_packed
    if not is_possible or needs.base.quantization:
        return False
    all_free = needs.hardware.model_copy(update={"free_gib": needs.hardware.memory_gib})
    if replace(needs, hardware=all_free).fits(1, True, "paged_adamw_8bit"):
        return False  # what is in the way now may be gone when its turn comes
    if host_gib(needs.base) > _host_room_gib(needs.hardware):
        return False
    if not replace(needs, cpu_offload=True).fits(1, True, "paged_adamw_8bit"):
        return False
    why = "base and one row do not fit on the GPU, which reads the base from host memory, layer by layer"
    return choices.pick("cpu_offload", None, True, why)


def _host_room_gib(hardware: Hardware) -> float:
    return hardware.host_free_gib * SAFETY


def _optim(needs: _Needs, at_once: int, choices: Choices) -> Optim:
    is_short = needs.hardware.device == "cuda" and not needs.fits(at_once, True, "adamw_torch")
    chosen: Optim = "paged_adamw_8bit" if is_short else "adamw_torch"
    why = "8-bit state saves memory, which is short" if is_short else "exact, and its state fits"
    return choices.pick("optim", needs.request.optim, chosen, why)


def _checkpointing(needs: _Needs, at_once: int, optim: Optim, choices: Choices) -> bool:
    keep_all = needs.fits(at_once, False, optim) and not needs.is_fast
    why = "everything fits" if keep_all else "activations would not fit"
    if needs.is_fast:
        why = "in evaluations; the fast step keeps as much as fits, found out in its first steps"
    return choices.pick(
        "gradient_checkpointing", needs.request.gradient_checkpointing, not keep_all, why
    )


def _per_device(
    needs: _Needs, at_once: int, optim: Optim, checkpointing: bool, choices: Choices
) -> int:
    asked = needs.request.per_device_train_batch_size
    while asked is None and at_once > 1 and not needs.fits(at_once, checkpointing, optim):
        at_once //= 2
    fits = needs.fits(at_once, checkpointing, optim)
    why = f"{at_once * needs.max_length:,} tokens at once fit" if fits else "the smallest"
    return choices.pick("per_device_train_batch_size", asked, at_once, why)


def _is_fast(
    request: TrainingRequest, base: ModelFacts, hardware: Hardware, r: int, choices: Choices
) -> bool:
    reason = why_plain(base, hardware, bits=request.bits, r=r, lora_dropout=request.lora_dropout)
    if hardware.device == "cuda":
        why = reason or "own kernels for this architecture, the same arithmetic"
        choices.pick("step", None, "plain" if reason else "fast", why)
    return not reason


def _num_processes(
    request: TrainingRequest, hardware: Hardware, rows: int, choices: Choices, *, is_fast: bool
) -> int:
    """GPUs for `rows` an update; fewer than asked for where there are fewer, or where the step cannot be shared."""
    asked, most = request.num_processes, hardware.num_gpus if is_fast else 1
    if asked is not None and asked <= most:
        return asked
    if not is_fast and max(asked or 1, hardware.num_gpus) > 1:
        why = "only the fast step is shared among GPUs"
    elif asked is not None:
        why = f"{asked} were asked for, and no more of this kind are free or have room on the host"
    elif request.per_device_train_batch_size is None and _evenly(rows, most) < most:
        most, why = _evenly(rows, most), f"more would not make an update of {rows} rows faster"
    else:
        why = "all of this kind that are free"
    if (asked or hardware.num_gpus) == 1:
        return 1
    return choices.pick("num_processes", None, most, why)


def _evenly(rows: int, most: int) -> int:
    """The fewest GPUs on which as many rows at once do as on `most`: so the fewest are rounded up."""
    return math.ceil(rows / math.ceil(rows / most))


def _can_fp8(hardware: Hardware, choices: Choices, *, is_fast: bool) -> bool:
    why = (
        "only the fast step multiplies so"
        if hardware.has_fp8
        else "this hardware has no such products"
    )
    can = hardware.has_fp8 and is_fast
    if not can:
        choices.pick("fp8", None, False, why)
    return can
