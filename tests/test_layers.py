"""Rooms import only from rooms below them, heavy libraries stay where they belong, and modules stay readable."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qlora_space"
# What each room may import besides itself: rooms, or single modules of them.
# `fast`, `lowbit` and `experts` are libraries that know nothing of the app.
BELOW = {
    "core": set(),
    "plan": {"core", "fast.limits", "fast.policies"},
    "runs": {"core", "plan"},
    "hub": {"core", "plan", "runs"},
    "fast": set(),
    "experts": {"core"},
    "data": {"core", "plan", "hub"},
    "model": {"core", "plan", "runs", "hub", "data", "fast", "lowbit", "experts"},
    "lowbit": {"core", "experts"},
    "generate": {"core", "plan", "runs", "hub", "data", "fast", "lowbit", "model"},
    "train": {"core", "plan", "runs", "hub", "data", "fast", "lowbit", "model", "generate"},
    "places": {"core", "plan", "runs", "hub", "data", "lowbit", "model", "generate", "train"},
    "app": {"core", "plan", "runs", "hub", "places"},
    "__main__.py": {"app"},
}
LIBRARIES = {"fast", "lowbit", "experts"}
LIBRARIES_MAY_IMPORT = "qlora_space.core.errors"
TORCH_IS_FOR = {"experts", "fast", "lowbit", "model", "generate", "train"}
MOST_ROOMS = 13
MOST_MODULE_LINES = 500
MOST_FUNCTION_LINES = 60
MOST_FUNCTION_LINES_P90 = 20

MODULES = [
    (path.relative_to(PACKAGE).parts[0], path)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
]
each_module = pytest.mark.parametrize(
    ("room", "path"), MODULES, ids=[str(path.relative_to(PACKAGE)) for _, path in MODULES]
)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@each_module
def test_a_room_imports_only_what_is_below_it(room: str, path: Path) -> None:
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "qlora_space" and other not in (room, "__version__"):
            module = ".".join(rest.split(".")[:2])
            assert {other, module} & BELOW[room], f"{path.name} imports {name}"


@each_module
def test_a_library_imports_nothing_of_the_app_but_its_errors(room: str, path: Path) -> None:
    if room in LIBRARIES:
        others = {name for name in imports_of(path) if name.startswith("qlora_space.")}
        own = {name for name in others if name.startswith(f"qlora_space.{room}.")}
        below = tuple(f"qlora_space.{name}." for name in BELOW[room] & LIBRARIES)
        allowed = (f"{LIBRARIES_MAY_IMPORT}.", *below)
        beyond = {n for n in others - own if not n.startswith(allowed)}
        assert not beyond, f"{path.name} imports {beyond}"


def test_no_room_is_below_itself() -> None:
    """Taking away rooms that need nothing that is left, one after the other, takes away all."""
    left = dict(BELOW)
    while free := [room for room, needs in left.items() if not needs & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


def test_the_top_floor_has_few_rooms() -> None:
    rooms = {room for room, _ in MODULES if not room.endswith(".py")}
    assert len(rooms) <= MOST_ROOMS
    assert rooms <= BELOW.keys()


@each_module
def test_heavy_libraries_stay_in_their_rooms(room: str, path: Path) -> None:
    roots = {name.split(".")[0] for name in imports_of(path)}
    if room not in TORCH_IS_FOR:
        assert not roots & {"torch", "peft", "trl", "bitsandbytes"}, path
    if PACKAGE / "app" / "ui" not in path.parents:
        assert "gradio" not in roots, path


def test_the_web_process_never_loads_torch() -> None:
    code = (
        "import sys; import qlora_space.app.ui, qlora_space.app.actions, qlora_space.app.cli.main;"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def function_lines() -> dict[str, int]:
    found = {}
    for _, path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(PACKAGE)}:{node.name}:{node.lineno}"
                found[name] = (node.end_lineno or node.lineno) - node.lineno + 1
    return found


def test_modules_and_functions_can_be_read_in_one_sitting() -> None:
    modules = {str(path): len(path.read_text().splitlines()) for _, path in MODULES}
    assert {path: n for path, n in modules.items() if n > MOST_MODULE_LINES} == {}
    functions = function_lines()
    assert {name: n for name, n in functions.items() if n > MOST_FUNCTION_LINES} == {}
    assert statistics.quantiles(functions.values(), n=10)[-1] < MOST_FUNCTION_LINES_P90
