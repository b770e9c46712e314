"""The README is also the Space's configuration, and its option table is the request's."""

import importlib.util
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
FRONT = yaml.safe_load(TEXT.split("---\n")[1])


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_option_table_is_that_of_the_request() -> None:
    spec = importlib.util.spec_from_file_location(
        "write_options", ROOT / "docs" / "write_options.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_table(TEXT) == TEXT, "run python docs/write_options.py"


def test_the_front_matter_makes_a_gradio_space() -> None:
    assert FRONT["sdk"] == "gradio"
    assert (ROOT / FRONT["app_file"]).is_file()
    assert len(FRONT["short_description"]) <= 60  # the Hub rejects longer ones
    assert FRONT["hf_oauth"] is True
    assert "write-repos" not in FRONT["hf_oauth_scopes"]
    assert "manage-repos" not in FRONT["hf_oauth_scopes"]


def test_spaces_is_imported_before_anything_else() -> None:
    lines = (ROOT / "app.py").read_text().splitlines()
    assert next(line for line in lines if line.startswith(("import", "from"))).startswith(
        "import spaces"
    )


def test_a_space_is_not_told_to_change_what_its_platform_pins() -> None:
    names = {r.name for r in requirements("requirements.txt")}
    assert not names & {"gradio", "spaces", "huggingface_hub"}
    assert {r.name for r in requirements("requirements-platform.txt")} == {
        "gradio",
        "spaces",
        "huggingface_hub",
    }


def test_the_constraints_are_within_what_is_allowed() -> None:
    exact = {r.name.lower().replace("_", "-"): r for r in requirements("constraints.txt")}
    for requirement in requirements("requirements.txt") + requirements("requirements-platform.txt"):
        pinned = next(iter(exact[requirement.name.lower().replace("_", "-")].specifier))
        assert requirement.specifier.contains(pinned.version), requirement


@pytest.mark.parametrize(
    "name",
    [
        "docs/images/new-run.png",
        "docs/images/run.png",
        "CONTRIBUTING.md",
        "docs/PERFORMANCE.md",
        "docs/LOG.md",
    ],
)
def test_what_the_readme_shows_is_there(name: str) -> None:
    assert name in TEXT
    assert (ROOT / name).is_file()


def test_an_installed_package_brings_its_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["qlora_space"]
    brought = {path for pattern in patterns for path in (ROOT / "qlora_space").glob(pattern)}
    needed = {
        p
        for p in (ROOT / "qlora_space").rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc", ".md")
    }
    assert needed <= brought
