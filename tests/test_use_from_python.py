"""The code of the README's section "Use it from Python" runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = "## Use it from Python\n"


def blocks() -> list[str]:
    section = (ROOT / "README.md").read_text("utf-8").partition(SECTION)[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def test_the_section_has_code() -> None:
    assert blocks()


@pytest.mark.parametrize("number", range(len(blocks())))
def test_a_block_runs(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks()[number]], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
