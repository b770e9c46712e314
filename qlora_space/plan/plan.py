"""The Plan: what a worker does, to the last number. Nothing in it is None."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts
from qlora_space.core.options import Bits, Init

Optim = Literal["adamw_torch", "paged_adamw_8bit", "paged_adamw_32bit"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Value):
    """One value that was chosen for the user."""

    name: str
    value: str
    why: str


class MemoryPart(_Value):
    """One slice of the peak."""

    name: str
    gib: float


class Estimate(_Value):
    """What it will take; arithmetic, not a measurement."""

    peak_gib: float
    parts: tuple[MemoryPart, ...]
    fits: bool
    steps: int
    tokens: int = Field(description="Tokens that pass through the model in training, all epochs.")
    seconds: float = Field(description="From start to the finished adapter.")
    cost_usd: float = Field(description="0 on the user's own machine.")


class Plan(_Value):
    """A resolved TrainingRequest. Field names are those of the request, and peft's and trl's."""

    name: str
    dataset: DatasetFacts
    base: ModelFacts
    hardware: Hardware

    columns: dict[str, str]
    eval_split: str = Field(description="'' when held-out rows are taken from the training split.")
    eval_fraction: float
    num_eval_rows: int
    max_rows: int = Field(description="0 for all.")
    max_length: int
    drop_truncated: bool
    deduplicate: bool
    packing: bool
    assistant_only_loss: bool

    bits: Bits
    init: Init = "zero"
    heal: bool = False
    group_size: Literal[128, 64, 32] = 64
    mean_bits: float = Field(default=0.0, description="0: every layer has `bits`.")
    gptq: bool = False
    r: int
    lora_alpha: int
    lora_dropout: float

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
    step: Literal["fast", "plain"] = Field(
        default="plain", description="fast: qlora_space/fast, which chooses what to keep itself."
    )
    cpu_offload: bool = Field(
        default=False, description="The base's packed weights lie in host memory."
    )
    fp8: bool = Field(default=False, description="Products with the frozen base in FP8.")
    seed: int

    eval_steps: int
    load_best_model_at_end: bool = False
    early_stopping_patience: int = Field(default=0, description="0: never.")
    save_steps: int = Field(description="0: by time only.")
    save_seconds: float = 120.0
    num_samples: int

    choices: tuple[Choice, ...]
    estimate: Estimate

    @property
    def place(self) -> str:
        """'NVIDIA H200', '2 x NVIDIA H200', 'CPU, 2 cores'."""
        times = f"{self.num_processes} x " if self.num_processes > 1 else ""
        return times + self.hardware.name

    @property
    def is_low_bit(self) -> bool:
        """The base is packed by `lowbit`, not by bitsandbytes: below 4 bits, and wherever a start repairs it."""
        if self.base.quantization:  # packed by somebody else
            return False
        is_repaired = self.init != "zero" or self.heal or self.gptq
        return self.bits < 4 or (self.bits == 4 and is_repaired)

    @property
    def mean_width(self) -> float:
        """Bits per weight as they were asked for: the average where layers differ."""
        return self.mean_bits or self.bits

    @property
    def base_is_own(self) -> bool:
        """Its packed base depends on the calibration text, so that no recipe packs it again."""
        return self.is_low_bit and (self.init == "srr" or self.gptq or self.mean_bits > 0)
