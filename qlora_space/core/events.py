"""The events of a run: one JSON object per line of events.jsonl, `seq` without gaps.

An attempt begins with `started` and ends with exactly one of `finished`, `failed`, `cancelled`, `paused`. Steps
that are repeated after a resume or a rollback have the same step number again.
"""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int = Field(default=0, description="Line number in the file, from 0.")
    time: float = Field(default=0.0, description="Unix time in seconds.")


class Started(_Event):
    kind: Literal["started"] = "started"
    place: str = Field(description="The device, in words: 'CPU, 2 cores', 'NVIDIA H200'.")
    pid: int = Field(description="Process id of the writer; 0 where it is on another machine.")
    pid_start_time: float = Field(
        description="Seconds from boot to the start of that process; ids are reused."
    )
    resume_step: int = Field(
        default=0, description="Optimizer step that this attempt resumes after."
    )


PhaseName = Literal[
    "queue",
    "job",
    "data",
    "model",
    "heal",
    "evaluate",
    "train",
    "save",
    "disk",
    "report",
    "publish",
]


class Phase(_Event):
    kind: Literal["phase"] = "phase"
    name: PhaseName
    done: int
    total: int


class Metric(_Event):
    kind: Literal["metric"] = "metric"
    step: int
    total_steps: int
    values: dict[str, float] = Field(
        description="loss, eval_loss, learning_rate, grad_norm, epoch, tokens_per_second, memory_gib, peak_gib, "
        "card_gib (with what torch keeps to use again, as nvidia-smi shows it)."
    )


class Sample(_Event):
    kind: Literal["sample"] = "sample"
    step: int
    prompt: str
    expected: str
    text: str


class Checkpoint(_Event):
    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    num_bytes: int
    seconds: float


class Rollback(_Event):
    kind: Literal["rollback"] = "rollback"
    step: int = Field(description="Optimizer step that went wrong.")
    to_step: int = Field(description="Step of the snapshot that training resumes from.")
    why: str = Field(description="What went wrong, with the value.")
    learning_rate: float = Field(description="Peak learning rate from here on.")


class Heartbeat(_Event):
    """Written when no other event was for a while: the process is alive."""

    kind: Literal["heartbeat"] = "heartbeat"
    idle_seconds: float = Field(description="Since training last made progress.")


class QualityPoint(BaseModel):
    """A stage of a quantized base compared with its 16-bit original, on held-out text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["16 bit", "quantized", "start", "healed"]
    ppl: float = Field(description="Perplexity.")
    kl: float = Field(description="KL divergence from the 16-bit base, in nats per token.")
    top1: float = Field(
        description="Share of tokens whose likeliest successor is that of the 16-bit base."
    )


class Gate(_Event):
    """The quality gate of a low-bit base; a broken base is not trained."""

    kind: Literal["gate"] = "gate"
    bits: float = Field(description="Per weight; the average where layers differ.")
    init: str
    points: tuple[QualityPoint, ...] = Field(
        validation_alias=AliasChoices("points", "rungs")  # older event logs say "rungs"
    )
    is_broken: bool
    why: str
    text: str = Field(description="The text that it was measured on, in words.")


class Note(_Event):
    kind: Literal["note"] = "note"
    level: Literal["info", "warning", "error"]
    text: str


class Finished(_Event):
    kind: Literal["finished"] = "finished"
    step: int
    stopped_by_hand: bool = Field(
        default=False,
        validation_alias=AliasChoices("stopped_by_hand", "stopped_early"),  # older event logs
        description="The user stopped the run and kept the adapter.",
    )


class Failed(_Event):
    kind: Literal["failed"] = "failed"
    cause: str
    hint: str
    line: str = Field(default="", description="The line of the log that shows it.")


SliceState = Literal["waits_for_tab", "waits_for_gpu", "runs"]


class Slice(_Event):
    """A run on ZeroGPU trains in slices, each of which its owner's quota pays for: what the next one waits for, or that
    it runs. It ends with the next event of its kind, or with the attempt."""

    kind: Literal["slice"] = "slice"
    number: int = Field(description="Of this attempt, from 1.")
    state: SliceState
    seconds: int = Field(default=0, description="Of the GPU that it asked for.")
    to_go: int = Field(
        default=0, description="Slices until the end, this one among them; 0: not known."
    )


class Cancelled(_Event):
    kind: Literal["cancelled"] = "cancelled"
    step: int


PauseReason = Literal["deadline", "signal", "quota", "tab", "gpu"]


class Paused(_Event):
    """The attempt ended with everything saved; a resumed one continues as if it had not."""

    kind: Literal["paused"] = "paused"
    step: int
    why: PauseReason
    goes_on: str = Field(default="", description="When or how it can go on, as a sentence.")


Event = Annotated[
    Started
    | Phase
    | Metric
    | Sample
    | Checkpoint
    | Rollback
    | Heartbeat
    | Slice
    | Gate
    | Note
    | Finished
    | Failed
    | Cancelled
    | Paused,
    Field(discriminator="kind"),
]
TERMINAL_KINDS = ("finished", "failed", "cancelled", "paused")

_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def event_to_line(event: Event) -> str:
    """One line of JSON, without the newline."""
    return event.model_dump_json()


def event_from_line(line: str | bytes) -> Event:
    """Parse one line. Raises pydantic.ValidationError if it is not an event."""
    return _adapter.validate_json(line)
