"""Command line flags from the fields of a model: an option is written once."""

import argparse
from typing import Any

from pydantic import BaseModel

from qlora_space.core.errors import RequestError


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
