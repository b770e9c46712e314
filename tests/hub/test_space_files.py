"""A Space gets what it needs, from a checkout and from an installed package alike, and nothing else."""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from qlora_space.hub.space_files import APP, space_files

ROOT = Path(__file__).parents[2]
CODE = (
    "from qlora_space.hub.space_files import space_files;"
    "print(*(f'{f.name} {f.sha256}' for f in space_files()), sep='\\n')"
)


def text_of(name: str) -> str:
    source = next(f.source for f in space_files() if f.name == name)
    return source.decode() if isinstance(source, bytes) else source.read_text("utf-8")


def test_all_tracked_files_of_the_package_and_four_others_are_sent() -> None:
    output = subprocess.run(
        ["git", "ls-files", "qlora_space"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sent = {f.name for f in space_files()}
    tracked = {name for name in output.stdout.split() if (ROOT / name).is_file()}
    assert tracked <= sent
    top = {name for name in sent if not name.startswith("qlora_space/")}
    assert top == {"README.md", "LICENSE", "app.py", "requirements.txt"}


def test_the_app_of_a_space_is_that_of_the_repository() -> None:
    assert (ROOT / "app.py").read_text() == text_of("app.py") == APP


def test_the_readme_of_a_space_has_the_front_matter_of_ours() -> None:
    ours = yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])
    assert yaml.safe_load(text_of("README.md").split("---\n")[1]) == ours
    assert (ROOT / ours["app_file"]).is_file()


def test_of_a_folder_with_other_files_only_kinds_that_the_package_has_are_sent(
    tmp_path: Path,
) -> None:
    package = tmp_path / "qlora_space"
    for name in ("core/new.py", "core/secrets.env", ".git/x.py", "__pycache__/a.pyc", ".key.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x")
    for name in ("README.md", "app.py", "requirements.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".env").write_text("HF_TOKEN=hf_x")
    assert {f.name for f in space_files(package)} == {
        "README.md",
        "app.py",
        "requirements.txt",
        "qlora_space/core/new.py",
    }


@pytest.mark.slow
def test_the_installed_package_sends_the_same_as_the_checkout(tmp_path: Path) -> None:
    """From a wheel, in an environment that borrows its libraries from this one."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    found = subprocess.run(
        [python, "-c", f"import sys; sys.path.append({ours!r}); {CODE}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    sent = dict(line.rsplit(" ", 1) for line in found.stdout.splitlines())
    here = {f.name: f.sha256 for f in space_files()}
    assert sent.keys() == here.keys()
    assert {n for n in here if sent[n] != here[n]} <= {"requirements.txt"}


def test_requirements_of_the_installed_package_would_be_those_of_the_file() -> None:
    """What setuptools writes into the package's metadata is these files, less what a Space's platform brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    assert files == ["requirements.txt", "requirements-platform.txt"]
    lines = (ROOT / "requirements-platform.txt").read_text().splitlines()
    platform = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    assert platform == ["huggingface_hub"]
