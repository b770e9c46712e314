"""resolve(): the request and the facts in, the Plan out. Pure arithmetic; every chosen value has a reason."""

import math
from dataclasses import dataclass
from typing import Literal

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.errors import DiskFull, HubError, OutOfMemory, RequestError
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, RowCounts
from qlora_space.core.inspection import Inspection
from qlora_space.core.options import Format, Preset, Score
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import counted, plain_name
from qlora_space.plan.adapter import Adapter, choose_adapter
from qlora_space.plan.batch_size import SAFETY, Batch, choose_batch
from qlora_space.plan.eval_cost import EvalCost, holds_out_pieces
from qlora_space.plan.evaluation import Evaluation, choose_evaluation, choose_score
from qlora_space.plan.go_on import as_adapter_says
from qlora_space.plan.held_out import MAX_HELD_OUT_ROWS, default_eval_fraction, most_held_out
from qlora_space.plan.kinds import as_base_allows
from qlora_space.plan.low_bit import as_packed, default_learning_rate, with_mixed_bits
from qlora_space.plan.memory import KEPT_FOR_SPEED, bits_per_weight
from qlora_space.plan.plan import Choices, Estimate, MemoryPart, Plan
from qlora_space.plan.speed import low_bit_seconds, preparation_seconds, seconds_per_step

_EPOCHS = {Preset.QUICK: 1.0, Preset.BALANCED: 3.0, Preset.THOROUGH: 5.0}
_QUICK_STEPS = 100
_RSLORA_RATE = 1e-4  # peft's method_comparison/MetaMathQA
_AS_REQUESTED = (
    "text_overlap_tokens",
    "drop_truncated",
    "deduplicate",
    "packing",
    "assistant_only_loss",
    "bits",
    "heal",
    "group_size",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "seed",
    "save_seconds",
)


@dataclass(frozen=True)
class _Facts:
    """What is known before anything is chosen. `request` has its final bits; `eval_split` is '' for none."""

    request: TrainingRequest
    base: ModelFacts
    dataset: DatasetFacts
    hardware: Hardware
    eval_split: str
    columns: dict[str, str]
    instruction: str
    start: AdapterFacts | None


@dataclass(frozen=True)
class _Rows:
    """Which rows are read, trained on and held out, and for how long."""

    max_length: int
    eval_fraction: float
    num_eval_rows: int  # at most
    num_rows: int
    num_train_epochs: float
    counts: RowCounts

    @property
    def is_evaluated(self) -> bool:
        """Whether a row is held out: of those that were counted, none may be left that is not trained on."""
        return (self.counts.held_out_rows if self.counts.is_exact else self.num_eval_rows) > 0

    @property
    def num_packed_rows(self) -> float:
        """Of all epochs together."""
        return self.counts.packed_rows * self.num_train_epochs


@dataclass(frozen=True)
class _Schedule:
    """Steps and the size of an update. `max_steps` is -1 where the epochs decide; `steps` is never."""

    max_steps: int
    steps: int
    learning_rate: float
    max_grad_norm: float


def resolve(  # noqa: PLR0913 - each is a fact of its own
    request: TrainingRequest,
    base: ModelFacts,
    dataset: DatasetFacts,
    hardware: Hardware,
    *,
    eval_split: str = "",
    columns: dict[str, str] | None = None,
    instruction: str = "",
    start: AdapterFacts | None = None,
) -> Plan:
    """Fix every number, in this order: bits, rows, adapter, batch, schedule, estimate. `start`: the adapter that
    training goes on from.

    Raises RequestError for a combination that cannot work.
    """
    choices = Choices()
    request = with_mixed_bits(as_packed(request, base), base, choices)
    request = as_adapter_says(as_base_allows(request, base, choices), start, base, choices)
    facts = _Facts(request, base, dataset, hardware, eval_split, columns or {}, instruction, start)
    rows = _choose_rows(facts, choices)
    adapter = choose_adapter(request, base, choices)
    batch = choose_batch(
        request,
        base,
        hardware,
        rows.max_length,
        rows.counts,
        adapter.r,
        rows.num_packed_rows,
        choices,
        is_packed=adapter.is_packed,
    )
    schedule = _choose_schedule(facts, rows, batch, choices)
    evaluation = choose_evaluation(
        request,
        _eval_cost(facts, rows, batch, choose_score(request, dataset, choices)),
        schedule.steps,
        _seconds_without_evaluation(facts, rows, adapter, batch, schedule),
        choices,
        is_exact=rows.counts.is_exact,
    )
    return _plan(facts, rows, adapter, batch, schedule, evaluation, choices)


def least_gib_at(request: TrainingRequest, plan: Plan) -> float | None:
    """What the whole plan that `request` gets with the base, data and hardware of `plan` needs; None for one that
    cannot work."""
    try:
        other = resolve(
            request,
            plan.base,
            plan.dataset,
            plan.hardware,
            eval_split=plan.eval_split,
            columns=plan.columns,
            instruction=plan.instruction,
            start=plan.start,
        )
    except RequestError:
        return None
    return other.estimate.least_gib


def _plan(
    facts: _Facts,
    rows: _Rows,
    adapter: Adapter,
    batch: Batch,
    schedule: _Schedule,
    evaluation: Evaluation,
    choices: Choices,
) -> Plan:
    request, has_eval = facts.request, rows.is_evaluated
    return Plan(
        **{name: getattr(request, name) for name in _AS_REQUESTED},
        name=plain_name(request.name or "") or _run_name(facts.dataset, facts.base),
        dataset=facts.dataset,
        base=facts.base,
        hardware=facts.hardware,
        columns=facts.columns,
        instruction=facts.instruction,
        eval_split=facts.eval_split,
        eval_fraction=rows.eval_fraction,
        num_eval_rows=rows.num_eval_rows,
        max_rows=request.max_rows or 0,
        max_length=rows.max_length,
        start=facts.start,
        adapter=request.adapter or "",
        init=adapter.init,
        calibrated=adapter.calibrated,
        mean_bits=request.mean_bits or 0.0,
        r=adapter.r,
        expert_r=adapter.expert_r,
        lora_alpha=adapter.lora_alpha,
        num_train_epochs=rows.num_train_epochs,
        max_steps=schedule.max_steps,
        learning_rate=schedule.learning_rate,
        per_device_train_batch_size=batch.per_device,
        gradient_accumulation_steps=batch.accumulation,
        num_processes=batch.num_processes,
        max_grad_norm=schedule.max_grad_norm,
        optim=batch.optim,
        gradient_checkpointing=batch.gradient_checkpointing,
        step_kind="fast" if batch.is_fast else "plain",
        fp8=batch.is_fp8,
        cpu_offload=batch.cpu_offload,
        eval_steps=evaluation.eval_steps,
        eval_share=request.eval_share,
        score=evaluation.score,
        num_scored_rows=evaluation.num_scored_rows,
        forgetting=evaluation.forgetting,
        load_best_model_at_end=request.load_best_model_at_end and has_eval,
        early_stopping_patience=request.early_stopping_patience if has_eval else 0,
        save_steps=request.save_steps or 0,
        num_samples=request.num_samples if has_eval else 0,
        choices=tuple(choices.made),
        estimate=_estimate(facts, rows, batch, schedule, evaluation),
    )


def _choose_rows(facts: _Facts, choices: Choices) -> _Rows:
    request, dataset = facts.request, facts.dataset
    max_length = _max_length(facts, choices)
    num_rows = min(dataset.num_rows, request.max_rows or dataset.num_rows)
    _check_overlap(request, max_length)
    counts = dataset.counts
    if counts is None or counts.max_length != max_length:
        counts = _mean_counts(facts, max_length, num_rows)
    return _Rows(
        max_length=max_length,
        eval_fraction=_eval_fraction(facts, counts, choices),
        num_eval_rows=counts.most_held_out,
        num_rows=num_rows,
        num_train_epochs=_epochs(request, max(1, counts.rows), choices),
        counts=counts,
    )


def _mean_counts(facts: _Facts, max_length: int, num_rows: int) -> RowCounts:
    """About what was not counted, as if every example had the mean length."""
    request, dataset = facts.request, facts.dataset
    per_row = _pieces_per_row(request, dataset, max_length)
    by_piece = holds_out_pieces(dataset.format, num_rows)
    num_units = num_rows * per_row if by_piece else num_rows
    fraction = 0.0 if facts.eval_split else request.eval_fraction
    if fraction is None:
        fraction = default_eval_fraction(num_units)
    held_out = MAX_HELD_OUT_ROWS if facts.eval_split else most_held_out(num_units, fraction)
    units = max(1, num_units - (0 if facts.eval_split else held_out))
    pieces = units * (1 if by_piece else per_row)
    tokens_per_piece = max(1.0, min(dataset.lengths.mean / per_row, max_length))
    pieces_at_once = int(max_length / tokens_per_piece) if request.packing else 1
    return RowCounts(
        is_exact=False,
        max_length=max_length,
        rows=math.ceil(pieces / per_row),
        tokens=round(pieces * tokens_per_piece),
        packed_rows=math.ceil(pieces / pieces_at_once),
        eval_fraction=fraction,
        most_held_out=held_out,
        held_out_rows=held_out,
        held_out_documents=held_out * (1 if by_piece else per_row),
    )


def _check_overlap(request: TrainingRequest, max_length: int) -> None:
    """Raises RequestError for too much overlap."""
    overlap = request.text_overlap_tokens
    if 2 * overlap > max_length:
        raise RequestError(
            f"text_overlap_tokens is {overlap}, more than half of max_length ({max_length}).",
            f"Set it to {max_length // 2} or less.",
        )


def _pieces_per_row(request: TrainingRequest, dataset: DatasetFacts, max_length: int) -> int:
    """Documents that a row of mean length becomes: a long text is cut."""
    if dataset.format != Format.TEXT:
        return 1
    overlap = request.text_overlap_tokens
    return max(1, math.ceil((dataset.lengths.mean - overlap) / (max_length - overlap)))


def _max_length(facts: _Facts, choices: Choices) -> int:
    """In tokens. Raises RequestError for more than the base reads."""
    request, base = facts.request, facts.base
    if request.max_length and request.max_length > base.max_position_embeddings:
        raise RequestError(
            f"max_length is {request.max_length}, but {base.id} reads at most {base.max_position_embeddings} tokens.",
            f"Set it to {base.max_position_embeddings} or less.",
        )
    longest = facts.dataset.lengths.max
    default = default_max_length(longest, base, facts.hardware.device)
    why = f"the longest example has {longest:,} tokens"
    return choices.pick("max_length", request.max_length, default, why)


def default_max_length(
    longest_tokens: int, base: ModelFacts, device: Literal["cpu", "cuda"]
) -> int:
    """The longest example rounded up to 64 tokens, within what the base reads and the device does in good time."""
    smallest, largest = (512, 1024) if device == "cpu" else (1024, 4096)
    rounded = math.ceil(longest_tokens / 64) * 64
    return min(max(smallest, rounded), largest, base.max_position_embeddings)


def _eval_fraction(facts: _Facts, counts: RowCounts, choices: Choices) -> float:
    """The share of the training split that is held out."""
    if facts.eval_split:
        return 0.0
    default = counts.eval_fraction
    why = "to measure on rows it has not seen" if default else "too few rows to hold any out"
    return choices.pick("eval_fraction", facts.request.eval_fraction, default, why)


def _epochs(request: TrainingRequest, train_rows: int, choices: Choices) -> float:
    most = 1.0 if train_rows > 50_000 else 2.0 if train_rows > 10_000 else math.inf
    default = min(_EPOCHS[request.preset], most)
    why = f"preset {request.preset.value}, {counted(train_rows, 'row')}"
    return choices.pick("num_train_epochs", request.num_train_epochs, default, why)


def _choose_schedule(facts: _Facts, rows: _Rows, batch: Batch, choices: Choices) -> _Schedule:
    request = facts.request
    max_steps = _max_steps(request, choices)
    steps = num_steps(
        max_steps, rows.num_train_epochs, rows.counts.packed_rows, batch.rows_per_update
    )
    return _Schedule(
        max_steps=max_steps,
        steps=steps,
        learning_rate=_learning_rate(request, facts.base, choices),
        max_grad_norm=_max_grad_norm(request, choices),
    )


def num_steps(
    max_steps: int, num_train_epochs: float, packed_rows: int, rows_per_update: int
) -> int:
    """Optimizer steps of a run: `max_steps` if positive, or as many as the epochs need (the last may run over)."""
    if max_steps > 0:
        return max_steps
    return max(1, -int(-packed_rows * num_train_epochs // rows_per_update))


def _max_steps(request: TrainingRequest, choices: Choices) -> int:
    """-1 where the epochs decide."""
    if request.preset is Preset.QUICK and (request.max_steps or request.num_train_epochs) is None:
        return choices.pick("max_steps", None, _QUICK_STEPS, "preset quick: a first look")
    return request.max_steps or -1


def _learning_rate(request: TrainingRequest, base: ModelFacts, choices: Choices) -> float:
    default, why = default_learning_rate(request.bits, base)
    if request.use_rslora and default > _RSLORA_RATE:
        default, why = _RSLORA_RATE, "that of peft's comparison of rsLoRA, which scales by more"
    return choices.pick("learning_rate", request.learning_rate, default, why)


def _max_grad_norm(request: TrainingRequest, choices: Choices) -> float:
    if request.bits < 4:
        default, why = 0.3, "QLoRA's value: a low-bit base has large gradients"
    else:
        default, why = 1.0, "the usual limit"
    return choices.pick("max_grad_norm", request.max_grad_norm, default, why)


def _seconds_without_evaluation(
    facts: _Facts, rows: _Rows, adapter: Adapter, batch: Batch, schedule: _Schedule
) -> float:
    """Preparing data and base, and training."""
    base, hardware, dataset = facts.base, facts.hardware, facts.dataset
    seconds = preparation_seconds(base, hardware, rows.num_rows * dataset.lengths.mean)
    if adapter.is_packed and not base.quantization:
        seconds += low_bit_seconds(
            base, hardware, is_healed=facts.request.heal, calibrated=adapter.calibrated
        )
    step_seconds = seconds_per_step(
        base,
        hardware,
        tokens=batch.per_device * rows.max_length,
        batches=batch.accumulation,
        gradient_checkpointing=batch.gradient_checkpointing,
        is_fast=batch.is_fast,
        num_processes=batch.num_processes,
        cpu_offload=batch.cpu_offload,
        use_dora=facts.request.use_dora,
    )
    return seconds + 1.15 * schedule.steps * step_seconds


def _eval_cost(facts: _Facts, rows: _Rows, batch: Batch, score: Score) -> EvalCost:
    return EvalCost(
        model=facts.base,
        hardware=facts.hardware,
        dataset=facts.dataset,
        max_length=rows.max_length,
        num_eval_rows=rows.counts.held_out_rows if rows.is_evaluated else 0,
        num_samples=facts.request.num_samples,
        cpu_offload=batch.cpu_offload,
        score=score,
    )


def _estimate(
    facts: _Facts,
    rows: _Rows,
    batch: Batch,
    schedule: _Schedule,
    evaluation: Evaluation,
) -> Estimate:
    hardware, tokens_at_once = facts.hardware, batch.per_device * rows.max_length
    seconds = evaluation.other_seconds + evaluation.seconds
    least = sum(part.gib for part in batch.parts)
    return Estimate(
        peak_gib=round(least + batch.kept_gib, 2),
        least_gib=round(least, 2),
        parts=_with_kept(batch),
        fits=least <= hardware.free_gib * SAFETY,
        is_exact=rows.counts.is_exact,
        rows=rows.counts.rows,
        row_tokens=rows.counts.tokens,
        held_out_rows=rows.counts.held_out_rows,
        evaluations=evaluation.evaluations,
        steps=schedule.steps,
        tokens=schedule.steps * tokens_at_once * batch.accumulation * batch.num_processes,
        seconds=round(seconds, 1),
        eval_seconds=round(evaluation.seconds, 1),
        cost_usd=round(seconds / 3600 * hardware.price_per_hour_usd, 2),
    )


def _with_kept(batch: Batch) -> tuple[MemoryPart, ...]:
    if not batch.kept_gib:
        return batch.parts
    return (*batch.parts, MemoryPart(name=KEPT_FOR_SPEED, gib=batch.kept_gib))


def _run_name(dataset: DatasetFacts, base: ModelFacts) -> str:
    short = [value.rstrip("/").rsplit("/", 1)[-1] for value in (base.id, dataset.id)]
    return "Demo" if short == ["demo", "demo"] else f"{short[0]} on {short[1]}"[:80]


def check_startable(request: TrainingRequest, plan: Plan, inspection: Inspection) -> None:
    """Raises the first thing that would make the run fail later."""
    if request.mirror_to and plan.is_low_bit:
        raise RequestError(
            f"mirror_to does not work at {plan.bits} bits: the packed base would not be copied.",
            "Leave it out, or use 4 bits or more.",
        )
    if plan.publishing and plan.publishing.problem:
        raise HubError(plan.publishing.problem, plan.publishing.fix)
    if inspection.errors:
        first = inspection.errors[0]
        raise RequestError(first.message, first.fix)
    if not plan.estimate.fits:
        raise OutOfMemory(
            f"This needs about {plan.estimate.least_gib:.1f} GiB, but {plan.hardware.name} has "
            f"{plan.hardware.free_gib:.1f} GiB free.",
            "Use fewer bits, a shorter max_length, or a smaller base.",
        )
    stored = bits_per_weight(plan.mean_bits or plan.bits, plan.group_size, is_packed=True)
    packed_bytes = plan.base.linear_parameters * stored / 8
    download = plan.base.file_bytes if plan.base.source == "hub" else 0
    packed = packed_bytes if plan.is_low_bit else 0
    needed_gib = 0.2 + (download + packed) / 2**30
    if plan.hardware.disk_free_gib < needed_gib:
        raise DiskFull(
            f"{needed_gib:.1f} GiB of disk are needed, {plan.hardware.disk_free_gib:.1f} GiB are free.",
            "Free some space and try again.",
        )
