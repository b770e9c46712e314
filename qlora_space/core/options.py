"""The values that fields of a request choose from, and how a field is declared."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

DEMO = "demo"
Bits = Literal[16, 8, 4, 3, 2]
Init = Literal["zero", "svd", "diagonal", "eora", "srr"]
Score = Literal["number", "choice", "json", "tool_call", "f1", "rouge_l", "code", "exact", "none"]
Optim = Literal["adamw_torch", "paged_adamw_8bit", "paged_adamw_32bit"]


class Format(StrEnum):
    """How a row of the dataset becomes training text."""

    MESSAGES = "messages"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PREFERENCE = "preference"
    KTO = "kto"
    PROMPT_COMPLETION = "prompt_completion"
    TEXT = "text"


class Preset(StrEnum):
    QUICK = "quick"
    BALANCED = "balanced"
    THOROUGH = "thorough"


def described(default: Any, group: str, description: str, **limits: Any) -> Any:
    """A pydantic field in a group of the form."""
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def parse_int(value: object) -> object:
    """Turn '4' into 4: command lines and forms have only text."""
    return int(value) if isinstance(value, str) and value.isdigit() else value
