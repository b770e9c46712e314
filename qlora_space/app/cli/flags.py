"""Flags from the fields of a model, and back: an option is written once, in the model."""

import argparse
import shlex
from typing import Any

from pydantic import BaseModel

from qlora_space.core.errors import RequestError
from qlora_space.core.parsing import written_columns
from qlora_space.core.request import TrainingRequest


def add_fields(
    parser: argparse.ArgumentParser, model: type[BaseModel], without: tuple[str, ...] = ()
) -> None:
    """One flag per field, with the field's own description; values are checked by the model."""
    for name, field in model.model_fields.items():
        if name in without:
            continue
        flag = "--" + name.replace("_", "-")
        text = (field.description or "").replace("%", "%%")
        if field.annotation in (bool, bool | None):
            parser.add_argument(
                flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            parser.add_argument(flag, dest=name, default=None, metavar="V", help=text)


def given(options: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The flags that were on the command line. Raises RequestError for an empty one."""
    given = {name: getattr(options, name, None) for name in model.model_fields}
    empty = next((name for name, value in given.items() if value == ""), None)
    if empty is not None:
        raise RequestError(f"{empty} is '': it is empty.", "Give a value, or leave it out.")
    return {name: value for name, value in given.items() if value is not None}


def train_command(request: TrainingRequest) -> str:
    """`python -m qlora_space train ...` with the options that differ from the defaults, quoted for a shell."""
    words = ["python", "-m", "qlora_space", "train"]
    for name, value in request.model_dump(mode="json", exclude_defaults=True).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [
                f"--{flag}",
                written_columns(value) if isinstance(value, dict) else str(value),
            ]
    return shlex.join(words)
