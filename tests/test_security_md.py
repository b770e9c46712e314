"""Each promise of SECURITY.md names tests, and they exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
PROMISES = TEXT.split("## Promises\n")[1].split("## Not promised\n")[0]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def names_in(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    functions = ast.parse(path.read_text("utf-8")).body if path.is_file() else []
    return {f.name for f in functions if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) == TEXT.count("::"), "one is written in another way"
    missing = {(file, name) for file, name in named if name not in names_in(ROOT / file)}
    assert missing == set()


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise |")]
    assert len(promises) > 30
    assert [row for row in promises if not NAMED.search(row.split(" | ")[1])] == []
