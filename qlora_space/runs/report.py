"""report.json: base and trained model scored on the same held-out rows."""

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.events import QualityPoint


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scores(_Value):
    """One row of the score table."""

    name: str = Field(description="'base' or 'trained'")
    heldout_loss: float | None = Field(
        default=None, description="Nats per trained token on held-out rows."
    )
    exact_match: float | None = Field(
        default=None, description="Share of held-out answers given word for word, greedy."
    )
    general_loss: float | None = Field(
        default=None, description="Nats per token on text of the base's own kind (demo only)."
    )


class Answer(_Value):
    prompt: str
    expected: str
    base: str
    adapted: str


class Report(_Value):
    """A finished run in numbers; None where nothing was measured."""

    scores: tuple[Scores, ...]
    num_eval_rows: int
    num_exact_match_rows: int
    answers: tuple[Answer, ...] = ()
    steps: int
    trained_tokens: int
    train_seconds: float
    total_seconds: float
    tokens_per_second: float
    peak_gib: float
    best_step: int | None = None
    adapter_step: int | None = Field(
        default=None, description="Step of the adapter: the best one, or the last."
    )
    stopped_early: bool = False
    gate: tuple[QualityPoint, ...] = Field(
        default=(), description="A low-bit base against its 16-bit original, before training."
    )
    adapter_sha256: str
    versions: dict[str, str] = {}
