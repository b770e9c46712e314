"""How many rows at once, with which optimizer and step: what fits into the memory that is free."""

import math
from dataclasses import dataclass

from qlora_space.facts import Hardware, ModelFacts
from qlora_space.plan.choices import Choices
from qlora_space.plan.memory import estimate_memory
from qlora_space.plan.plan import MemoryPart, Optim
from qlora_space.plan.step import why_plain
from qlora_space.request import TrainingRequest

SAFETY = 0.92  # share of the free memory that a plan may use
_ROWS_PER_UPDATE = 16  # QLoRA's batch size, arXiv 2305.14314, table 9
_MIN_UPDATES_PER_RUN = 250


@dataclass(frozen=True)
class Batch:
    """Rows and what a step takes with them."""

    per_device: int
    accumulation: int
    gradient_checkpointing: bool
    optim: Optim
    is_fast: bool
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
    budget = hardware.free_gib * SAFETY
    is_fast = _is_fast(request, base, hardware, r, choices)

    def parts(per_device: int, checkpointing: bool, optim: Optim) -> tuple[MemoryPart, ...]:
        return estimate_memory(
            base,
            hardware,
            bits=request.mean_bits or request.bits,
            group_size=request.group_size,
            is_packed=is_packed,
            r=r,
            tokens_at_once=per_device * max_length,
            gradient_checkpointing=checkpointing,
            optim=optim,
            is_fast=is_fast,
        )

    def gib(per_device: int, checkpointing: bool, optim: Optim) -> float:
        return sum(part.gib for part in parts(per_device, checkpointing, optim))

    at_once = request.per_device_train_batch_size or wanted
    is_short = hardware.device == "cuda" and gib(at_once, True, "adamw_torch") > budget
    optim: Optim = choices.pick(
        "optim",
        request.optim,
        "paged_adamw_8bit" if is_short else "adamw_torch",
        "8-bit state saves memory, which is short" if is_short else "exact, and its state fits",
    )

    def fits(per_device: int, checkpointing: bool) -> bool:
        return gib(per_device, checkpointing, optim) <= budget

    keep_all = fits(at_once, False) and not is_fast
    fast_why = "in evaluations; the fast step keeps as much as fits, found out in its first steps"
    checkpointing = choices.pick(
        "gradient_checkpointing",
        request.gradient_checkpointing,
        not keep_all,
        fast_why if is_fast else "everything fits" if keep_all else "activations would not fit",
    )
    while (
        request.per_device_train_batch_size is None
        and at_once > 1
        and not fits(at_once, checkpointing)
    ):
        at_once //= 2
    per_device = choices.pick(
        "per_device_train_batch_size",
        request.per_device_train_batch_size,
        at_once,
        f"{at_once * max_length:,} tokens at once fit"
        if fits(at_once, checkpointing)
        else "the smallest",
    )
    accumulation = choices.pick(
        "gradient_accumulation_steps",
        request.gradient_accumulation_steps,
        math.ceil(wanted / per_device),
        f"{wanted} rows an update for this much data",
    )
    needed = parts(per_device, checkpointing, optim)
    return Batch(per_device, accumulation, checkpointing, optim, is_fast, needed)


def _is_fast(
    request: TrainingRequest, base: ModelFacts, hardware: Hardware, r: int, choices: Choices
) -> bool:
    reason = why_plain(base, hardware, bits=request.bits, r=r, lora_dropout=request.lora_dropout)
    if hardware.device == "cuda":
        why = reason or "own kernels for this architecture, the same arithmetic"
        choices.pick("step", None, "plain" if reason else "fast", why)
    return not reason
