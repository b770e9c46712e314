"""What may be asked about the data of a run; `request.py` goes on with base and training."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from qlora_space.core.options import DEMO, Format
from qlora_space.core.options import described as _field
from qlora_space.core.parsing import parse_columns


class DataOptions(BaseModel):
    """Which rows, how they are read, and what of them is learned. None: "choose for me"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = _field(
        DEMO,
        "data",
        "Hub dataset id, a file, a folder, or 'demo' for the embedded one.",
        min_length=1,
        max_length=500,
    )
    dataset_config: str | None = _field(
        None, "data", "Configuration (subset) of a Hub dataset. Default: its first."
    )
    dataset_split: str | None = _field(
        None, "data", "Split to train on. Default: 'train', else the first."
    )
    dataset_revision: str | None = _field(
        None, "data", "Commit or branch of a Hub dataset. Default: main, pinned to today's commit."
    )
    format: Format | None = _field(
        None, "data", "How rows become training text. Default: detected from the columns."
    )
    columns: Annotated[dict[str, str], BeforeValidator(parse_columns)] | None = _field(
        None,
        "data",
        "Which column plays which part, as field=column,field=column "
        "(for example prompt=question,completion=answer). Default: detected.",
    )
    eval_split: str | None = _field(
        None,
        "data",
        "Split held out for evaluation. Default: 'validation' or 'test' where there is one.",
    )
    eval_fraction: float | None = _field(
        None,
        "data",
        "Share of the training rows held out, in place of an evaluation split. 0 turns evaluation off. "
        "Default: up to 0.1 where there is no such split.",
        ge=0,
        le=0.5,
    )
    max_rows: int | None = _field(
        None,
        "data",
        "Train on the first N rows only. Fewer rows are quicker; use it for a first look.",
        ge=1,
    )
    max_length: int | None = _field(
        None,
        "data",
        "Longest example in tokens; longer ones lose their end. Memory grows with it.",
        ge=16,
        le=1_048_576,
    )
    drop_truncated: bool = _field(
        False,
        "data",
        "Leaves out examples whose answer would lose its end. Off: they teach an answer without its end.",
    )
    deduplicate: bool = _field(
        False, "data", "Trains on each row once: exact repeats of an earlier row are left out."
    )
    packing: bool = _field(
        True,
        "data",
        "Puts several short examples into one row; they never see each other. Several times faster on short data.",
    )
    assistant_only_loss: bool = _field(
        True, "data", "Learn the answers only. Off: learn to write the questions too."
    )
