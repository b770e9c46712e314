"""What inspection tells about a dataset before any GPU is used. Plain values, shown by page and CLI alike."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.facts import DatasetFacts, TokenLengths
from qlora_space.request import Format


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Token(_Value):
    id: int
    text: str
    trained: bool


class SampleRow(_Value):
    """One real example as the model will see it."""

    tokens: tuple[Token, ...]
    truncated: bool


class Problem(_Value):
    """One finding. Errors block Start, warnings do not."""

    code: str = Field(description="Stable, e.g. 'empty_answer'.")
    severity: Literal["error", "warning", "info"]
    rows: int = Field(description="Number of rows concerned among those looked at.")
    message: str
    fix: str


class Inspection(_Value):
    """Everything that is known about a dataset together with a base's tokenizer and template."""

    dataset: DatasetFacts
    format: Format
    reason: str = Field(description="Why this format, in a sentence.")
    columns: tuple[str, ...]
    mapping: dict[str, str] = Field(description="Part of the format -> column of the dataset.")
    num_rows: int
    rows_looked_at: int
    lengths: TokenLengths
    problems: tuple[Problem, ...]
    samples: tuple[SampleRow, ...]
    preview: tuple[dict[str, str], ...] = Field(description="First rows, cells shortened, as text.")
    configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    eval_split: str = ""

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(p for p in self.problems if p.severity == "error")
