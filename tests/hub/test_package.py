"""Importing the package is cheap, and none of its values can hold a token."""

import dataclasses
import subprocess
import sys

import pytest

import qlora_space.hub as hub_package

HEAVY = ("torch", "transformers", "datasets", "gradio", "pandas", "pyarrow", "peft")


def test_importing_it_is_light() -> None:
    code = f"import sys, qlora_space.hub; print([m for m in {HEAVY} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("name", hub_package.__all__)
def test_no_value_has_a_field_for_a_token(name: str) -> None:
    value = getattr(hub_package, name)
    if dataclasses.is_dataclass(value):
        assert not [f.name for f in dataclasses.fields(value) if "token" in f.name]
        assert value.__dataclass_params__.frozen  # type: ignore[union-attr]
