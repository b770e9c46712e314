"""The container of one's own server: not root, pinned, nothing secret, and built where there is a Docker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
STEPS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", TEXT)).splitlines()
    if line
]
HADOLINT = Path(sys.executable).with_name("hadolint")


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def copied() -> set[str]:
    """What is taken from this folder."""
    return {source for rest in arguments("COPY") for source in rest.split()[:-1]}


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint has no wheel for this machine")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_does_not_run_as_root() -> None:
    instructions = [name for name, _ in STEPS]
    assert instructions.count("USER") == 1
    assert arguments("USER") == ["1000"]
    assert "useradd --create-home --uid 1000 server" in arguments("RUN")[0]
    assert instructions.index("USER") > max(i for i, n in enumerate(instructions) if n == "RUN")


def test_the_base_image_is_that_of_the_pythons_that_are_tested() -> None:
    (image,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.12-slim-[a-z]+", image)


def test_nothing_is_downloaded_but_packages_and_nothing_secret_is_in_it() -> None:
    assert not arguments("ADD")
    assert not re.search(r"\b(curl|wget|git)\b", TEXT)
    assert not re.search(r"(?i)token|secret|password|api_key", TEXT)
    for line in arguments("RUN"):
        assert "pip install" not in line or "-c constraints.txt" in line


def test_only_what_is_copied_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied()
    assert lines[1] == "*"
    assert all((ROOT / name).exists() for name in copied())


def test_runs_and_downloads_are_kept_in_the_volume() -> None:
    (volume,) = arguments("VOLUME")
    (settings,) = arguments("ENV")
    for name in ("QLORA_SPACE_HOME", "HF_HOME"):
        assert f"{name}={volume}/" in settings
    assert "GRADIO_SERVER_NAME=0.0.0.0" in settings
    assert arguments("EXPOSE") == ["7860"]


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_it_builds_and_serves_as_another_user() -> None:
    if shutil.which("docker") is None or _docker("info").returncode != 0:
        pytest.skip("no Docker is running here")
    built = _docker("build", "-t", "qlora-space-test", ".")
    assert built.returncode == 0, built.stderr
    asked = "import os, qlora_space.app.ui; print(os.getuid())"
    ran = _docker("run", "--rm", "qlora-space-test", "python", "-c", asked)
    assert ran.stdout.strip() == "1000", ran.stderr
