"""resolve(): the request and the facts in, the Plan out. Pure arithmetic; every chosen value has a reason."""

import math
from typing import Literal

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts
from qlora_space.core.options import Init, Preset
from qlora_space.core.request import TrainingRequest
from qlora_space.plan.batch_size import SAFETY, Batch, choose_batch
from qlora_space.plan.choices import Choices
from qlora_space.plan.eval_cost import eval_seconds
from qlora_space.plan.low_bit import (
    as_packed,
    default_init,
    default_learning_rate,
    refuse_groups_that_do_not_divide,
    refuse_repair_of_nothing,
    with_mixed_bits,
)
from qlora_space.plan.plan import Estimate, Plan
from qlora_space.plan.speed import low_bit_seconds, preparation_seconds, seconds_per_step

_EPOCHS = {Preset.QUICK: 1.0, Preset.BALANCED: 3.0, Preset.THOROUGH: 5.0}
_QUICK_STEPS = 100
_MAX_EVAL_ROWS = 200
_EVALUATIONS_PER_RUN = 6
_ENOUGH = "enough for most tasks; more for many facts"
_AS_ASKED = (
    "drop_truncated",
    "deduplicate",
    "packing",
    "assistant_only_loss",
    "bits",
    "heal",
    "group_size",
    "gptq",
    "lora_dropout",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "seed",
    "save_seconds",
)


def resolve(
    request: TrainingRequest,
    base: ModelFacts,
    dataset: DatasetFacts,
    hardware: Hardware,
    *,
    eval_split: str = "",
    columns: dict[str, str] | None = None,
) -> Plan:
    """Fix every number. Raises RequestError for a combination that cannot work."""
    choices = Choices()
    request = with_mixed_bits(as_packed(request, base), base, choices)
    max_length = _max_length(request, base, dataset, hardware, choices)
    fraction, num_eval_rows = _held_out(request, dataset, eval_split, choices)
    rows = _num_rows(request, dataset)
    train_rows = max(1, rows - (0 if eval_split else num_eval_rows))
    packed = _packed_rows(request, dataset, max_length, train_rows)
    epochs = _epochs(request, train_rows, choices)
    init, r, alpha = _adapter(request, choices)
    is_packed = _is_packed(request, base, init)
    if is_packed and not base.quantization and request.bits <= 4:
        refuse_groups_that_do_not_divide(base, request.group_size)
    batch = choose_batch(
        request, base, hardware, max_length, r, packed * epochs, choices, is_packed=is_packed
    )
    max_steps = _max_steps(request, choices)
    rows_per_update = batch.per_device * batch.accumulation * batch.num_processes
    updates = math.ceil(packed * epochs / rows_per_update)
    steps = max_steps if max_steps > 0 else max(1, updates)
    preparing = preparation_seconds(base, hardware, rows * dataset.lengths.mean)
    if is_packed and not base.quantization:
        preparing += low_bit_seconds(base, hardware, is_healed=request.heal)
    eval_steps = _eval_steps(request, steps, choices)
    num_samples = request.num_samples if num_eval_rows else 0
    looking = eval_seconds(
        base,
        hardware,
        dataset,
        max_length=max_length,
        num_eval_rows=num_eval_rows,
        looks=1 + math.ceil(steps / eval_steps),
        num_samples=num_samples,
        cpu_offload=batch.cpu_offload,
    )
    return Plan(
        **{name: getattr(request, name) for name in _AS_ASKED},
        name=request.name or _name(dataset, base),
        dataset=dataset,
        base=base,
        hardware=hardware,
        columns=columns or {},
        eval_split=eval_split,
        eval_fraction=fraction,
        num_eval_rows=num_eval_rows,
        max_rows=request.max_rows or 0,
        max_length=max_length,
        init=init,
        mean_bits=request.mean_bits or 0.0,
        r=r,
        lora_alpha=alpha,
        num_train_epochs=epochs,
        max_steps=max_steps,
        eval_steps=eval_steps,
        learning_rate=choices.pick(
            "learning_rate", request.learning_rate, *default_learning_rate(request.bits, base)
        ),
        per_device_train_batch_size=batch.per_device,
        gradient_accumulation_steps=batch.accumulation,
        num_processes=batch.num_processes,
        max_grad_norm=_max_grad_norm(request, choices),
        optim=batch.optim,
        gradient_checkpointing=batch.gradient_checkpointing,
        step="fast" if batch.is_fast else "plain",
        fp8=batch.is_fp8,
        cpu_offload=batch.cpu_offload,
        load_best_model_at_end=request.load_best_model_at_end and num_eval_rows > 0,
        early_stopping_patience=request.early_stopping_patience if num_eval_rows else 0,
        save_steps=request.save_steps or 0,
        num_samples=num_samples,
        choices=tuple(choices.made),
        estimate=_estimate(base, hardware, batch, steps, max_length, preparing + looking),
    )


def _is_packed(request: TrainingRequest, base: ModelFacts, init: str) -> bool:
    """The base is not bitsandbytes' own."""
    repaired = init != "zero" or request.heal or request.gptq
    return request.bits < 4 or repaired or bool(base.quantization)


def _max_length(
    request: TrainingRequest,
    base: ModelFacts,
    dataset: DatasetFacts,
    hardware: Hardware,
    choices: Choices,
) -> int:
    if request.max_length and request.max_length > base.max_position_embeddings:
        raise RequestError(
            f"max_length is {request.max_length}, but {base.id} reads at most {base.max_position_embeddings} tokens.",
            f"Set it to {base.max_position_embeddings} or less.",
        )
    chosen = default_max_length(dataset.lengths.max, base, hardware.device)
    why = f"the longest example has {dataset.lengths.max:,} tokens"
    return choices.pick("max_length", request.max_length, chosen, why)


def default_max_length(
    longest_tokens: int, base: ModelFacts, device: Literal["cpu", "cuda"]
) -> int:
    """The longest example with some room, within what the base reads and the place has patience for."""
    smallest, largest = (512, 1024) if device == "cpu" else (1024, 4096)
    fitting = math.ceil(longest_tokens / 64) * 64
    return min(max(smallest, fitting), largest, base.max_position_embeddings)


def _held_out(
    request: TrainingRequest, dataset: DatasetFacts, eval_split: str, choices: Choices
) -> tuple[float, int]:
    if eval_split:
        return 0.0, _MAX_EVAL_ROWS
    rows = _num_rows(request, dataset)
    chosen = 0.0 if rows < 20 else min(0.1, _MAX_EVAL_ROWS / rows)
    why = "too few rows to hold any out" if rows < 20 else "to measure on rows that it has not seen"
    fraction = choices.pick("eval_fraction", request.eval_fraction, round(chosen, 4), why)
    return fraction, min(_MAX_EVAL_ROWS, math.ceil(rows * fraction))


def _num_rows(request: TrainingRequest, dataset: DatasetFacts) -> int:
    return min(dataset.num_rows, request.max_rows or dataset.num_rows)


def _packed_rows(
    request: TrainingRequest, dataset: DatasetFacts, max_length: int, train_rows: int
) -> int:
    tokens_per_row = max(1.0, min(dataset.lengths.mean, max_length))
    together = max(1, int(max_length / tokens_per_row)) if request.packing else 1
    return math.ceil(train_rows / together)


def _epochs(request: TrainingRequest, train_rows: int, choices: Choices) -> float:
    most = 1.0 if train_rows > 50_000 else 2.0 if train_rows > 10_000 else math.inf
    chosen = min(_EPOCHS[request.preset], most)
    why = f"preset {request.preset.value}, {train_rows:,} rows"
    return choices.pick("num_train_epochs", request.num_train_epochs, chosen, why)


def _adapter(request: TrainingRequest, choices: Choices) -> tuple[Init, int, int]:
    """How it starts, r and alpha."""
    init = _init(request, choices)
    is_low = request.bits < 4
    chosen = 32 if is_low or request.preset is Preset.THOROUGH else 16
    why = "it also has the base to repair" if is_low else _ENOUGH
    r = choices.pick("r", request.r, chosen, why)
    why = "equal to r: the adapter is added unscaled"
    return init, r, choices.pick("lora_alpha", request.lora_alpha, r, why)


def _init(request: TrainingRequest, choices: Choices) -> Init:
    refuse_repair_of_nothing(request)
    chosen = default_init(request.bits)
    if request.bits > 4:
        return chosen
    why = "starts as the best repair of the base" if chosen == "eora" else "4 bits lose little"
    return choices.pick("init", request.init, chosen, why)


def _max_steps(request: TrainingRequest, choices: Choices) -> int:
    """-1 where the epochs decide."""
    if request.preset is Preset.QUICK and (request.max_steps or request.num_train_epochs) is None:
        return choices.pick("max_steps", None, _QUICK_STEPS, "preset quick: a first look")
    return request.max_steps or -1


def _eval_steps(request: TrainingRequest, steps: int, choices: Choices) -> int:
    chosen = max(10, math.ceil(steps / _EVALUATIONS_PER_RUN))
    why = f"about {_EVALUATIONS_PER_RUN} looks at the held-out rows"
    return choices.pick("eval_steps", request.eval_steps, chosen, why)


def _max_grad_norm(request: TrainingRequest, choices: Choices) -> float:
    if request.bits < 4:
        chosen, why = 0.3, "QLoRA's value: a low-bit base has loud gradients"
    else:
        chosen, why = 1.0, "the usual limit"
    return choices.pick("max_grad_norm", request.max_grad_norm, chosen, why)


def _estimate(
    base: ModelFacts,
    hardware: Hardware,
    batch: Batch,
    steps: int,
    max_length: int,
    other_seconds: float,
) -> Estimate:
    tokens_at_once = batch.per_device * max_length
    step = seconds_per_step(
        base,
        hardware,
        tokens=tokens_at_once,
        batches=batch.accumulation,
        gradient_checkpointing=batch.gradient_checkpointing,
        is_fast=batch.is_fast,
        num_processes=batch.num_processes,
        cpu_offload=batch.cpu_offload,
    )
    seconds = 1.15 * steps * step + other_seconds
    peak = sum(part.gib for part in batch.parts)
    return Estimate(
        peak_gib=round(peak, 2),
        parts=batch.parts,
        fits=peak <= hardware.free_gib * SAFETY,
        steps=steps,
        tokens=steps * tokens_at_once * batch.accumulation * batch.num_processes,
        seconds=round(seconds, 1),
        cost_usd=round(seconds / 3600 * hardware.price_per_hour_usd, 2),
    )


def _name(dataset: DatasetFacts, base: ModelFacts) -> str:
    short = [value.rstrip("/").rsplit("/", 1)[-1] for value in (base.id, dataset.id)]
    return "Demo" if short == ["demo", "demo"] else f"{short[0]} on {short[1]}"[:80]
