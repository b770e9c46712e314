"""How many rows at once, with which optimizer and which kind of step: what fits into the free memory."""

import math
from dataclasses import dataclass, replace

from qlora_space.core.facts import Hardware, ModelFacts, RowCounts
from qlora_space.core.options import Optim
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import counted
from qlora_space.plan.memory import estimate_memory, host_gib, kept_for_speed_gib
from qlora_space.plan.mixtures import expert_rank
from qlora_space.plan.plan import Choices, MemoryPart
from qlora_space.plan.speed import seconds_per_step
from qlora_space.plan.step_kind import why_adapter_is_plain, why_plain

SAFETY = 0.92  # share of the free memory that a plan may use
_ROWS_PER_UPDATE = 16  # QLoRA's batch size, arXiv 2305.14314, table 9
_MIN_UPDATES_PER_RUN = 250
_PADDED_TO = 64  # tokens, by train/batches.py
_DEVIATIONS = 3.0  # which the largest of some hundred sums lies above their mean


@dataclass(frozen=True)
class Batch:
    """Rows of a micro-batch and of an update, and how a step is done. `parts` is the memory that it needs, `kept_gib`
    what the fast step holds beyond it."""

    per_device: int
    accumulation: int
    num_processes: int
    gradient_checkpointing: bool
    optim: Optim
    is_fast: bool
    is_fp8: bool
    cpu_offload: bool
    parts: tuple[MemoryPart, ...]
    kept_gib: float

    @property
    def rows_per_update(self) -> int:
        return self.per_device * self.accumulation * self.num_processes


def choose_batch(  # noqa: PLR0913
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    max_length: int,
    counts: RowCounts,
    r: int,
    num_packed_rows: float,
    choices: Choices,
    *,
    is_packed: bool = False,
) -> Batch:
    """Rows per update from the amount of data (`num_packed_rows` in all epochs), then as many at once as fit, with
    gradient checkpointing only where it must be."""
    update_rows = max(1, min(_ROWS_PER_UPDATE, int(num_packed_rows / _MIN_UPDATES_PER_RUN)))
    is_fast = _is_fast(request, base, hardware, r, choices, max_length * update_rows)
    memory = _Memory(request, base, hardware, max_length, counts, r, is_fast, is_packed)
    if cpu_offload := _cpu_offload(memory, choices):
        memory = replace(memory, cpu_offload=True)
        copies = int(_host_room_gib(hardware) / host_gib(base))  # each GPU reads one of its own
        hardware = hardware.model_copy(update={"num_gpus": min(hardware.num_gpus, copies)})
    num_processes = _num_processes(request, hardware, update_rows, choices, is_fast=is_fast)
    at_once = request.per_device_train_batch_size or math.ceil(update_rows / num_processes)
    optim = _optim(memory, at_once, choices)
    checkpointing = _checkpointing(memory, at_once, optim, choices)
    per_device = _per_device(memory, at_once, optim, checkpointing, choices)
    accumulation = choices.pick(
        "gradient_accumulation_steps",
        request.gradient_accumulation_steps,
        math.ceil(update_rows / (per_device * num_processes)),
        f"{counted(update_rows, 'row')} per update for this much data",
    )
    parts = memory.parts(per_device, checkpointing, optim)
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
        parts=parts,
        kept_gib=memory.kept_gib(parts, per_device, optim),
    )


def largest_batch_tokens(counts: RowCounts, rows: int, *, is_fast: bool) -> int:
    """Tokens of the micro-batch of `rows` packed rows that needs the most memory.

    The plain step pads all to the longest; the fast one leaves padding out, and few batches are all long rows.
    """
    if not (counts.is_exact and counts.longest_row):
        return rows * counts.max_length
    if not is_fast:
        return rows * math.ceil(counts.longest_row / _PADDED_TO) * _PADDED_TO
    mean = counts.tokens / counts.packed_rows
    likely = rows * mean + _DEVIATIONS * math.sqrt(rows) * counts.row_deviation
    return math.ceil(min(rows * counts.longest_row, likely))


@dataclass(frozen=True)
class _Memory:
    """What a micro-batch of some rows needs, and whether the GPU has it."""

    request: TrainingRequest
    base: ModelFacts
    hardware: Hardware
    max_length: int
    counts: RowCounts
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
            expert_r=expert_rank(self.request, self.base, self.r),
            tokens_at_once=largest_batch_tokens(self.counts, rows, is_fast=self.is_fast),
            max_length=self.max_length,
            gradient_checkpointing=checkpointing,
            optim=optim,
            is_fast=self.is_fast,
            cpu_offload=self.cpu_offload,
            target_modules=self.request.target_modules,
            use_dora=self.request.use_dora,
        )

    def kept_gib(self, parts: tuple[MemoryPart, ...], rows: int, optim: Optim) -> float:
        """Beyond `parts`, for speed."""
        if not self.is_fast:
            return 0.0
        tokens = largest_batch_tokens(self.counts, rows, is_fast=True)
        return kept_for_speed_gib(
            self.base,
            self.hardware,
            parts,
            r=self.r,
            expert_r=expert_rank(self.request, self.base, self.r),
            tokens_at_once=tokens,
            optim=optim,
        )

    def fits(self, rows: int, checkpointing: bool, optim: Optim) -> bool:
        needed = sum(part.gib for part in self.parts(rows, checkpointing, optim))
        return needed <= self.hardware.free_gib * SAFETY


def _cpu_offload(memory: _Memory, choices: Choices) -> bool:
    """Whether packed weights lie in host memory: where an empty GPU cannot hold base and one row, but can so."""
    is_possible = memory.is_fast and memory.request.bits == 4 and not memory.is_packed
    if not is_possible or memory.base.quantization or memory.base.num_experts:
        return False
    all_free = memory.hardware.model_copy(update={"free_gib": memory.hardware.memory_gib})
    if replace(memory, hardware=all_free).fits(1, True, "paged_adamw_8bit"):
        return False  # whatever takes memory now may be gone when the run starts
    if host_gib(memory.base) > _host_room_gib(memory.hardware):
        return False
    if not replace(memory, cpu_offload=True).fits(1, True, "paged_adamw_8bit"):
        return False
    why = "base and one row do not fit on the GPU, which reads the base from host memory, layer by layer"
    return choices.pick("cpu_offload", None, True, why)


def _host_room_gib(hardware: Hardware) -> float:
    return hardware.host_free_gib * SAFETY


def _optim(memory: _Memory, at_once: int, choices: Choices) -> Optim:
    is_short = memory.hardware.device == "cuda" and not memory.fits(at_once, True, "adamw_torch")
    default: Optim = "paged_adamw_8bit" if is_short else "adamw_torch"
    why = "8-bit state saves memory, which is short" if is_short else "exact, and its state fits"
    return choices.pick("optim", memory.request.optim, default, why)


def _checkpointing(memory: _Memory, at_once: int, optim: Optim, choices: Choices) -> bool:
    fits_without = memory.fits(at_once, False, optim) and not memory.is_fast
    why = "everything fits" if fits_without else "activations would not fit"
    if memory.is_fast:
        why = "in evaluations; the fast step keeps as much as fits, found out in its first steps"
    return choices.pick(
        "gradient_checkpointing", memory.request.gradient_checkpointing, not fits_without, why
    )


def _per_device(
    memory: _Memory, at_once: int, optim: Optim, checkpointing: bool, choices: Choices
) -> int:
    requested = memory.request.per_device_train_batch_size
    while requested is None and at_once > 1 and not memory.fits(at_once, checkpointing, optim):
        at_once //= 2
    fits = memory.fits(at_once, checkpointing, optim)
    rows = f"{at_once} rows" if at_once > 1 else "one row"
    each = f"{rows} of {memory.max_length:,} tokens {'fit' if at_once > 1 else 'fits'} in memory"
    why = each if fits else "the smallest"
    return choices.pick("per_device_train_batch_size", requested, at_once, why)


def _is_fast(
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    r: int,
    choices: Choices,
    tokens: int,
) -> bool:
    """tokens: of an update."""
    reason = why_plain(request, base, hardware, r)
    if hardware.device == "cuda":
        why = reason or "own kernels for this architecture, the same arithmetic"
        if reason and reason == why_adapter_is_plain(request, base, r):
            why = f"{reason}: a step takes about {_plain_over_fast(request, base, hardware, tokens):.1f} times as long"
        choices.pick("step_kind", None, "plain" if reason else "fast", why)
    return not reason


def _plain_over_fast(
    request: TrainingRequest, base: ModelFacts, hardware: Hardware, tokens: int
) -> float:
    """Time of a plain step over that of a fast one, with gradient checkpointing."""
    plain, fast = (
        seconds_per_step(
            base,
            hardware,
            tokens=tokens,
            batches=1,
            gradient_checkpointing=True,
            is_fast=is_fast,
            use_dora=request.use_dora and not is_fast,
        )
        for is_fast in (False, True)
    )
    return plain / fast


def _num_processes(
    request: TrainingRequest,
    hardware: Hardware,
    update_rows: int,
    choices: Choices,
    *,
    is_fast: bool,
) -> int:
    """GPUs for an update; fewer than requested where there are fewer, or where the step cannot be shared."""
    requested, most = request.num_processes, hardware.num_gpus if is_fast else 1
    if requested is not None and requested <= most:
        return requested
    if not is_fast and max(requested or 1, hardware.num_gpus) > 1:
        why = "only the fast step is shared among GPUs"
    elif requested is not None:
        why = f"{requested} were asked for, and no more of this kind are free or have room on the host"
    elif request.per_device_train_batch_size is None and _fewest(update_rows, most) < most:
        most = _fewest(update_rows, most)
        why = f"more would not make an update of {counted(update_rows, 'row')} faster"
    else:
        why = "all of this kind that are free"
    if (requested or hardware.num_gpus) == 1:
        return 1
    return choices.pick("num_processes", None, most, why)


def _fewest(rows: int, most: int) -> int:
    """The fewest GPUs that need as few micro-batches for `rows` as `most` do, so that little is rounded up."""
    return math.ceil(rows / math.ceil(rows / most))


def _can_fp8(hardware: Hardware, choices: Choices, *, is_fast: bool) -> bool:
    if hardware.has_fp8 and is_fast:
        return True
    why = "this hardware has no FP8" if not hardware.has_fp8 else "only the fast step has FP8"
    return choices.pick("fp8", None, False, why)
