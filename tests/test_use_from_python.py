"""README's section "Use it from Python": each of its blocks runs as it stands, in a process and a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TITLE = "## Use it from Python\n"


def blocks() -> list[str]:
    """The section's Python blocks, in their order."""
    _, found, rest = (ROOT / "README.md").read_text("utf-8").partition(TITLE)
    assert found, f"README.md has no section {TITLE.strip()}"
    section = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_section_has_blocks() -> None:
    assert blocks()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_block_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", blocks()[number]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
