"""The result of inspecting a dataset, before any GPU is used. Plain values for page, CLI and API."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.facts import DatasetFacts, TokenLengths
from qlora_space.core.options import Format


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Token(_Value):
    id: int
    text: str
    trained: bool
    special: bool = Field(default=False, description="A token of the model's own, not text.")


class SampleRow(_Value):
    """One example as the model sees it."""

    tokens: tuple[Token, ...] = Field(description="The first of those within max_length.")
    truncated: bool = Field(description="max_length cuts off its end.")
    num_tokens: int = Field(default=0, description="Of the whole example.")
    cut_tokens: tuple[Token, ...] = Field(
        default=(), description="The first of those that max_length cuts off; none is trained."
    )
    prompt: str = Field(default="", description="What the model reads before it answers.")
    place: str = Field(default="", description="Where the row is, such as 'train.jsonl, line 7'.")


class Change(_Value):
    """A fix in one click: a field of TrainingRequest and its new value, as text."""

    field: Literal[
        "format",
        "columns",
        "instruction",
        "max_length",
        "drop_truncated",
        "deduplicate",
        "eval_fraction",
        "num_train_epochs",
        "preset",
        "bits",
        "place",
    ]
    value: str


class Problem(_Value):
    """One finding. Errors prevent a start, warnings do not."""

    code: str = Field(description="Stable, e.g. 'empty_answer'.")
    severity: Literal["error", "warning", "info"]
    rows: int = Field(description="Affected rows among those inspected.")
    message: str
    fix: str
    place: str = Field(default="", description="The first affected row, 'train.jsonl, line 7'.")
    change: Change | None = Field(default=None, description="The field that fixes it, if one does.")
    drops: bool = Field(default=False, description="The rows are left out of training anyway.")


class Inspection(_Value):
    """A dataset together with a base's tokenizer and chat template."""

    dataset: DatasetFacts
    format: Format
    reason: str = Field(description="Why this format, in a sentence.")
    confidence: float = Field(default=1.0, description="1: chosen by the user; below 0.7: a guess.")
    columns: tuple[str, ...]
    mapping: dict[str, str] = Field(description="Part of the format -> column of the dataset.")
    parts: tuple[str, ...] = Field(default=(), description="Parts that the format has.")
    instruction: str = Field(default="", description="Text that stands before each prompt.")
    num_rows: int
    rows_looked_at: int
    lengths: TokenLengths
    max_length: int = Field(default=0, description="What lengths and problems were measured with.")
    row_lengths: tuple[int, ...] = Field(
        default=(), description="Tokens of every inspected row, sorted."
    )
    problems: tuple[Problem, ...]
    samples: tuple[SampleRow, ...]
    packed: tuple[SampleRow, ...] = Field(
        default=(), description="The documents of one packed row, in order, as training has them."
    )
    preview: tuple[dict[str, str], ...] = Field(description="First rows, cells shortened, as text.")
    configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    eval_split: str = ""

    @property
    def unknown_format(self) -> Problem | None:
        """Why the rows were only shown and not tokenized, if so."""
        return next((p for p in self.problems if p.code == "unknown_format"), None)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")
