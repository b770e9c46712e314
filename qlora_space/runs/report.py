"""report.json: base and trained model scored on the same held-out rows."""

import itertools
import math

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

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


class RowLosses(_Value):
    """Loss of base and trained model on the same rows: sums in nats over the tokens of each row."""

    tokens: tuple[int, ...] = Field(description="Trained tokens of each row.")
    base: tuple[float, ...]
    trained: tuple[float, ...]
    pieces: tuple[int, ...] = Field(
        default=(), description="How many rows in succession are of one text; empty: each is alone."
    )

    def of_texts(self) -> "RowLosses":
        """Pieces of one text together: they are no independent rows."""
        if not self.pieces:
            return self
        ends = list(itertools.accumulate(self.pieces))
        spans = [slice(end - count, end) for end, count in zip(ends, self.pieces, strict=True)]
        return RowLosses(
            tokens=tuple(sum(self.tokens[span]) for span in spans),
            base=tuple(math.fsum(self.base[span]) for span in spans),
            trained=tuple(math.fsum(self.trained[span]) for span in spans),
        )


class LossChange(_Value):
    """Loss of the trained model minus that of the base, in nats per token, and its 95 % interval."""

    change: float
    low: float
    high: float

    @property
    def is_better(self) -> bool:
        return self.high < 0

    @property
    def is_worse(self) -> bool:
        return self.low > 0


class ScoreChange(_Value):
    """A score of the trained model minus that of the base, 0 to 1, and its 95 % interval."""

    change: float
    low: float
    high: float

    @property
    def is_better(self) -> bool:
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        return self.high < 0


class Measure(_Value):
    """What answers to the same prompts are worth, row by row, 0 to 1; more is better."""

    name: str = Field(description="As core/scoring names it: 'number', 'f1', 'exact'.")
    base: tuple[float, ...]
    trained: tuple[float, ...]
    change: ScoreChange | None = Field(
        default=None, description="None where there are too few rows for an interval."
    )

    @property
    def num_rows(self) -> int:
        return len(self.base)

    @property
    def means(self) -> tuple[float, float]:
        """Of base and trained model."""
        count = max(1, self.num_rows)
        return math.fsum(self.base) / count, math.fsum(self.trained) / count

    @property
    def is_count(self) -> bool:
        """Whether an answer is right or wrong, and nothing between."""
        return all(value in (0.0, 1.0) for value in (*self.base, *self.trained))


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
    measures: tuple[Measure, ...] = Field(
        default=(), description="Of the answers; the plan's score comes first."
    )
    forgetting: tuple[Measure, ...] = Field(
        default=(),
        description="Of general questions before and after: all, then knowledge, instructions, arithmetic.",
    )
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
    stopped_by_hand: bool = Field(
        default=False,
        validation_alias=AliasChoices("stopped_by_hand", "stopped_early"),  # older reports
        description="The user stopped the run and kept the adapter.",
    )
    planned_steps: int | None = None
    heldout_rows: RowLosses | None = None
    heldout_change: LossChange | None = Field(
        default=None, description="None where there are too few rows for an interval."
    )
    eval_texts_are_trained: bool = Field(
        default=False, description="The held-out rows are the ends of texts that are trained on."
    )
    general_rows: RowLosses | None = None
    general_change: LossChange | None = None
    gate: tuple[QualityPoint, ...] = Field(
        default=(), description="A low-bit base against its 16-bit original, before training."
    )
    adapter_sha256: str
    versions: dict[str, str] = {}
