"""What pip chooses today for a Space, on its Python, is what the lock has: the releases that were tested."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.test_packaging import ROOT, requirements

FRONT = yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])
PYTHON = f"python{FRONT['python_version']}"


def space_python() -> str:
    """The Python of a Space on this machine; the test is skipped where there is none."""
    prefix = subprocess.run(
        ["bash", "-c", f"pyenv prefix {FRONT['python_version']}"], capture_output=True, text=True
    ).stdout.strip()
    for candidate in (sys.executable, PYTHON, f"{prefix}/bin/{PYTHON}"):
        found = shutil.which(candidate)
        asked = [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if found and _output(asked) == FRONT["python_version"]:
            return found
    pytest.skip(f"{PYTHON} is not on this machine")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pip_resolves_a_space_to_the_tested_releases(tmp_path: Path) -> None:
    """Patch releases may be newer than the lock's; a minor release, or a major one of lesser libraries, may not."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([space_python(), "-m", "venv", tmp_path / "venv"], check=True)
    platform = [f"gradio[oauth]=={FRONT['sdk_version']}", "spaces", "huggingface_hub"]
    files = ["-r", ROOT / "requirements.txt"]
    report = tmp_path / "report.json"
    resolve = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report]
    subprocess.run([*resolve, *platform, *files], check=True, cwd=tmp_path)
    chosen = {
        canonicalize_name(item["metadata"]["name"]): Version(item["metadata"]["version"])
        for item in json.loads(report.read_text())["install"]
    }
    locked = {
        canonicalize_name(r.name): Version(next(iter(r.specifier)).version)
        for r in requirements("constraints.txt")
    }
    asked = {canonicalize_name(r.name) for r in requirements("requirements.txt")}
    for name in asked | {"gradio", "spaces", "huggingface-hub"}:
        assert chosen[name].release[:2] == locked[name].release[:2], name
    assert chosen.keys() <= locked.keys() | {"setuptools"}
