"""The library installs and works without the page; a Space, the extra [app] and `make` get the rest."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qlora_space.app.cli import commands

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qlora_space"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# What training rests on, where a minor release changes behaviour.
BREAKS_IN_MINOR_RELEASES = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "numpy",
    "pandas",
    "peft",
    "safetensors",
    "torch",
    "transformers",
    "trl",
}
# None in sys.modules: Python says that there is no such module.
BLOCK = "import sys; sys.modules.update(dict.fromkeys(['gradio', 'gradio_client', 'spaces']))"
SMALL = ("--max-steps", "2", "--max-rows", "40", "--max-length", "256", "--num-samples", "1")


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def library_requirements() -> list[Requirement]:
    """What installing the package without an extra asks for."""
    files = PROJECT["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    return [requirement for file in files for requirement in requirements(file)]


def app_requirements() -> list[Requirement]:
    return [Requirement(line) for line in EXTRAS["app"]]


def test_a_space_is_not_told_to_change_what_its_platform_pins() -> None:
    asked = {requirement.name for requirement in requirements("requirements.txt")}
    assert not asked & {"gradio", "spaces", "huggingface_hub"}


def test_with_the_page_everything_is_installed_and_without_it_neither_gradio_nor_spaces() -> None:
    names = {requirement.name for requirement in library_requirements()}
    assert "huggingface_hub" in names
    assert not names & {"gradio", "spaces"}
    assert {requirement.name for requirement in app_requirements()} == {"gradio", "spaces"}


def test_the_constraints_are_within_what_is_allowed() -> None:
    exact = {canonicalize_name(r.name): r for r in requirements("constraints.txt")}
    for requirement in library_requirements() + app_requirements():
        pinned = next(iter(exact[canonicalize_name(requirement.name)].specifier))
        assert requirement.specifier.contains(pinned.version), requirement


def next_release(version: str, position: int) -> str:
    """The next major (0) or minor (1) release."""
    numbers = [int(part) for part in version.split(".")[: position + 1]]
    return ".".join(map(str, [*numbers[:position], numbers[position] + 1]))


def test_a_space_that_is_built_later_gets_no_release_that_was_not_tested() -> None:
    exact = {canonicalize_name(r.name): r for r in requirements("constraints.txt")}
    for requirement in requirements("requirements.txt"):
        pinned = next(iter(exact[canonicalize_name(requirement.name)].specifier)).version
        position = 1 if requirement.name in BREAKS_IN_MINOR_RELEASES else 0
        assert not requirement.specifier.contains(next_release(pinned, position)), requirement


def test_a_space_gets_the_gradio_that_was_tested() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])
    exact = {r.name: str(r.specifier) for r in requirements("constraints.txt")}
    assert exact["gradio"] == f"=={front['sdk_version']}"


def brought_by(requirement: Requirement, found: set[str]) -> set[str]:
    """Names of the distributions that a requirement installs here, itself among them."""
    name = canonicalize_name(requirement.name)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if name in found or not applies:
        return found
    found.add(name)
    try:
        for line in requires(name) or ():
            brought_by(Requirement(line), found)
    except PackageNotFoundError:
        pass
    return found


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_what_the_library_imports_comes_with_its_requirements() -> None:
    brought: set[str] = set()
    for requirement in library_requirements():
        brought_by(requirement, brought)
    distributions = packages_distributions()
    page = PACKAGE / "app" / "ui"
    on_zero_gpu = {PACKAGE / "places" / name for name in ("platform.py", "gpu_functions.py")}
    missing = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in PACKAGE.rglob("*.py")
        if page not in path.parents and path not in on_zero_gpu
        for module in imports_of(path)
        if module not in {*sys.stdlib_module_names, "qlora_space", "triton"}
        and not brought & {canonicalize_name(name) for name in distributions.get(module, ())}
    }
    assert missing == set()


def test_an_installed_package_brings_its_files() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["qlora_space"]
    brought = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    needed = {
        p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".md")
    }
    assert needed <= brought


@pytest.fixture(scope="module")
def without_the_page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python, and of its children, that has neither gradio nor spaces."""
    folder = tmp_path_factory.mktemp("no-page")
    (folder / "sitecustomize.py").write_text(BLOCK)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
        "QLORA_SPACE_HOME": str(folder / "home"),
        "CUDA_VISIBLE_DEVICES": "",
    }


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "qlora_space", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("inspect", "demo", "--max-rows", "20"), ("plan",), ("train", *SMALL)],
    ids=lambda arguments: arguments[0],
)
def test_the_command_line_works_without_the_page(
    without_the_page: dict[str, str], arguments: tuple[str, ...]
) -> None:
    done = command(without_the_page, *arguments)
    assert done.returncode == 0, done.stderr


def test_without_gradio_the_page_says_in_one_sentence_what_to_install(
    without_the_page: dict[str, str],
) -> None:
    done = command(without_the_page, "app")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("The page needs gradio, which is not installed. Install it with: pip ")
    assert commands._GRADIO in line
    assert commands._GRADIO in EXTRAS["app"]
