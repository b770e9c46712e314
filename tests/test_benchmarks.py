"""Benchmarks are run by hand, so a name that moved is missed there: what they import from the project exists."""

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

_BENCHMARKS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", _BENCHMARKS, ids=lambda file: file.stem)
def test_a_benchmark_imports_names_that_exist(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] not in ("qlora_space", "tests"):
            continue
        module = importlib.import_module(node.module)
        for alias in node.names:
            is_module = (
                find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
            )
            assert hasattr(module, alias.name) or is_module, f"{node.module} has no {alias.name}"
