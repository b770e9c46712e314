"""The Plan: everything a worker does, to the last number. Nothing in it is None."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts
from qlora_space.core.options import Bits, Init, Optim, Score
from qlora_space.core.places import PlaceOffer
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.core.targets import ALL_LINEAR

T = TypeVar("T")
_NOT_SETTINGS = {
    "name",
    "hardware",
    "choices",
    "estimate",
    "dataset",
    "base",
    "start",
    "publishing",
    "offer",
    "places",
}
_SHA_CHARS = 12


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Value):
    """One value that was chosen for the user."""

    name: str
    value: str
    why: str


@dataclass
class Choices:
    """Collects the values that are chosen for the user, in order."""

    made: list[Choice] = field(default_factory=list)

    def pick(self, name: str, requested: T | None, default: T, why: str) -> T:
        """`requested` if the user gave it; else `default`, which is noted with its reason."""
        if requested is not None:
            return requested
        self.made.append(Choice(name=name, value=_text(default), why=why))
        return default


class MemoryPart(_Value):
    """One part of the peak memory."""

    name: str
    gib: float


class Estimate(_Value):
    """What the run will cost; arithmetic, not a measurement."""

    peak_gib: float = Field(
        description="The most that it holds at once, with what it keeps for speed where memory is free."
    )
    least_gib: float = Field(description="What it needs: the peak without what is kept for speed.")
    parts: tuple[MemoryPart, ...] = Field(
        description="Of the peak; what is kept for speed comes last."
    )
    fits: bool = Field(description="Whether the least does.")
    is_exact: bool = Field(
        default=False,
        description="All rows were counted: rows, tokens and steps are the run's own.",
    )
    rows: int = Field(default=0, description="Rows trained on.")
    row_tokens: int = Field(default=0, description="Tokens of these rows, without padding.")
    held_out_rows: int = 0
    evaluations: int = Field(
        default=0, description="Of the held-out rows, first and last step included."
    )
    steps: int = Field(description="Optimizer steps.")
    tokens: int = Field(description="Tokens that pass through the model in training, all epochs.")
    seconds: float = Field(description="From start to the report.")
    eval_seconds: float = Field(default=0.0, description="Of these, evaluation.")
    cost_usd: float = Field(description="0 on the user's own machine.")

    @model_validator(mode="before")
    @classmethod
    def _peak_is_the_least(cls, values: Any) -> Any:
        """In plan.json files without `least_gib`."""
        if isinstance(values, dict) and "peak_gib" in values:
            return {"least_gib": values["peak_gib"]} | values
        return values


class Plan(_Value):
    """A resolved TrainingRequest. Field names are those of the request, and peft's and trl's."""

    name: str
    dataset: DatasetFacts
    base: ModelFacts
    hardware: Hardware

    columns: dict[str, str]
    instruction: str = ""
    eval_split: str = Field(description="'' when held-out rows are taken from the training split.")
    eval_fraction: float
    num_eval_rows: int
    max_rows: int = Field(description="0 for all.")
    max_length: int
    text_overlap_tokens: int = 0
    drop_truncated: bool
    deduplicate: bool
    packing: bool
    assistant_only_loss: bool

    bits: Bits
    adapter: str = Field(default="", description="That training goes on from; '': a new one.")
    start: AdapterFacts | None = Field(default=None, description="What that adapter is.")
    init: Init = "zero"
    heal: bool = False
    group_size: Literal[128, 64, 32] = 64
    mean_bits: float = Field(default=0.0, description="0: every layer has `bits`.")
    calibrated: bool = Field(
        default=False,
        validation_alias=AliasChoices("calibrated", "gptq"),  # older plan.json files say "gptq"
        description="Quantized by the calibration text.",
    )
    r: int
    expert_r: int = Field(default=0, description="Rank on each expert; 0: none, or no experts.")
    lora_alpha: int
    lora_dropout: float
    target_modules: str = Field(default=ALL_LINEAR, description="As core/targets.py reads it.")
    use_rslora: bool = False
    use_dora: bool = False

    num_train_epochs: float
    max_steps: int = Field(description="-1: as many as the epochs need.")
    learning_rate: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_processes: int = Field(default=1, description="GPUs that share every update.")
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    warmup_steps: float
    weight_decay: float
    max_grad_norm: float
    optim: Optim
    gradient_checkpointing: bool
    step_kind: Literal["fast", "plain"] = Field(
        default="plain",
        validation_alias=AliasChoices("step_kind", "step"),  # older plan.json files say "step"
        description="fast: qlora_space/fast, which picks its activation policy itself.",
    )
    cpu_offload: bool = Field(
        default=False, description="The base's packed weights lie in host memory."
    )
    fp8: bool = Field(default=False, description="Products with the frozen base in FP8.")
    seed: int

    eval_steps: int
    eval_share: float = 0.15
    score: Score = "exact"
    num_scored_rows: int = Field(
        default=200, description="Held-out rows, at most, whose answers are scored at the end."
    )
    forgetting: bool = Field(
        default=False, description="General questions are asked before and after."
    )
    load_best_model_at_end: bool = False
    early_stopping_patience: int = Field(default=0, description="0: never.")
    save_steps: int = Field(description="0: by time only.")
    save_seconds: float = 120.0
    num_samples: int

    choices: tuple[Choice, ...]
    estimate: Estimate
    publishing: Rehearsal | None = Field(
        default=None, description="Where the adapter is to be published when the run is done."
    )

    offer: PlaceOffer | None = Field(
        default=None, description="The place that was chosen; None: this machine."
    )
    places: tuple[PlaceOffer, ...] = Field(
        default=(), description="Where it could run, at the prices of the day."
    )

    @property
    def device_label(self) -> str:
        """'NVIDIA H200', '2 x NVIDIA H200', 'CPU, 2 cores'."""
        count = f"{self.num_processes} x " if self.num_processes > 1 else ""
        return count + self.hardware.name

    @property
    def is_low_bit(self) -> bool:
        """Whether `lowbit` packs the base, not bitsandbytes: below 4 bits, and at 4 bits if calibrated or repaired."""
        if self.base.quantization:  # the checkpoint is quantized already
            return False
        is_more = self.init != "zero" or self.heal or self.calibrated
        return self.bits < 4 or (self.bits == 4 and is_more)

    @property
    def lora_scale(self) -> float:
        """What the adapter's output is multiplied with."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    @property
    def mean_width(self) -> float:
        """Bits per weight; the average where layers differ."""
        return self.mean_bits or self.bits

    @property
    def base_is_own(self) -> bool:
        """Whether its packed base depends on the calibration text, so that no recipe can reproduce it."""
        return self.is_low_bit and (self.init == "srr" or self.calibrated or self.mean_bits > 0)


def settings_of(plan: Plan) -> dict[str, str]:
    """Every setting as text, by field name; values chosen for the user count like requested ones."""
    values = plan.model_dump(mode="json", exclude=_NOT_SETTINGS)
    values["max_steps"] = plan.max_steps if plan.max_steps > 0 else "as many as the epochs need"
    sources = {
        "dataset": plan.dataset.id,
        "dataset_revision": plan.dataset.sha[:_SHA_CHARS],
        "format": plan.dataset.format,
        "base": plan.base.id,
        "base_revision": plan.base.sha[:_SHA_CHARS],
    }
    return sources | {name: _setting_text(value) for name, value in values.items()}


def differences(plans: Sequence[Plan]) -> list[tuple[str, tuple[str, ...]]]:
    """(field, its value in each plan) of every setting that differs, in the order of a plan's fields."""
    settings = [settings_of(plan) for plan in plans]
    rows = [(name, tuple(one[name] for one in settings)) for name in settings[0]]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _setting_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={column}" for key, column in value.items())
    text = _text(value)
    return text.replace("e-0", "e-") if isinstance(value, float) else text


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
