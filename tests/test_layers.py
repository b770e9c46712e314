"""The import graph runs downwards, heavy libraries stay where they belong, and modules stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qlora_space"
# A module may import from its own level's package and from lower levels only.
LEVELS = (
    {"errors", "demo", "interruption"},
    {"parsing", "flags", "options"},
    {"data_options"},
    {"events", "facts", "request", "settings"},
    {"inspection", "comparison"},
    {"plan", "machine", "processes"},
    {"runs"},
    {"hub"},
    {"publishing", "questions", "data", "model", "fast"},
    {"lowbit"},
    {"generate"},
    {"train"},
    {"worker"},
    {"backends"},
    {"actions"},
    {"terminal"},
    {"ui"},
    {"verbs"},
    {"cli"},
    {"__main__"},
)
TORCH_IS_FOR = {"lowbit", "model", "train", "generate", "fast", "demo"}


def level_of(name: str) -> int:
    return next(i for i, level in enumerate(LEVELS) if name in level)


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts != ("__init__.py",):
            found.append((parts[0].removesuffix(".py"), path))
    return found


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    ("place", "path"), modules(), ids=lambda value: str(value).rsplit("/", 1)[-1]
)
def test_a_module_imports_only_from_lower_layers(place: str, path: Path) -> None:
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "qlora_space" or len(parts) < 2 or parts[1] == "__version__":
            continue
        other = parts[1]
        assert other == place or level_of(other) < level_of(place), f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("place", "path"), modules(), ids=lambda value: str(value).rsplit("/", 1)[-1]
)
def test_heavy_libraries_stay_in_their_rooms(place: str, path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    if place not in TORCH_IS_FOR:
        assert not roots & {"torch", "peft", "trl", "bitsandbytes"}, path
    if place != "ui":
        assert "gradio" not in roots, path


def test_the_web_process_never_loads_torch() -> None:
    code = (
        "import sys; import qlora_space.ui, qlora_space.actions, qlora_space.cli;"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_modules_can_be_read_in_one_sitting() -> None:
    long = {str(p): n for _, p in modules() if (n := len(p.read_text().splitlines())) > 320}
    assert not long
