"""Comparisons that were made, kept with their run: each whole in comparisons/ID.json, and a line in the list."""

import re
import secrets
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.atomic import write_atomically
from qlora_space.core.comparison import CompareOptions, Done, Tally
from qlora_space.core.errors import RunError
from qlora_space.runs.folder import RunFolder

_MOST_KEPT = 100
_MOST_BYTES = 16 * 2**20  # of one; a longer one is not kept
_TITLE_CHARS = 120
_ID = re.compile(r"[0-9a-f]{16}")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComparisonLine(_Value):
    """In the list: `time` is Unix time; `title` the first prompt; the rest as in `Tally`."""

    id: str
    time: float
    title: str
    labels: tuple[str, ...]
    num_questions: int
    num_expected: int = 0
    num_right: tuple[int, ...] = ()
    measure: str = "exact"
    means: tuple[float, ...] = ()

    @property
    def tally(self) -> Tally | None:
        """None where no answer was expected."""
        if not self.num_expected:
            return None
        means = self.means or tuple(num / self.num_expected for num in self.num_right)
        return Tally(
            measure=self.measure, num_rows=self.num_expected, num_right=self.num_right, means=means
        )


class Comparison(_Value):
    """One that is over. `labels`: names of the panes, the base's first."""

    line: ComparisonLine
    options: CompareOptions
    done: Done


class _Lines(_Value):
    lines: tuple[ComparisonLine, ...] = Field(default=())


def keep_comparison(
    run: RunFolder, labels: tuple[str, ...], options: CompareOptions, done: Done
) -> str:
    """Its id; '' if it is too long to be kept. The oldest beyond a hundred are deleted. Raises DiskFull."""
    line = ComparisonLine(
        id=secrets.token_hex(8),
        time=time.time(),
        title=" ".join(done.rows[0].prompt.split())[:_TITLE_CHARS],
        labels=labels,
        num_questions=len(done.rows),
        **_figures(done.tally),
    )
    content = Comparison(line=line, options=options, done=done).model_dump_json()
    if len(content) > _MOST_BYTES:
        return ""
    run.comparisons_folder.mkdir(exist_ok=True)
    write_atomically(run.comparisons_folder / f"{line.id}.json", content)
    lines = (line, *comparison_lines(run))
    _write_lines(run, lines[:_MOST_KEPT])
    for old in lines[_MOST_KEPT:]:
        (run.comparisons_folder / f"{old.id}.json").unlink(missing_ok=True)
    return line.id


def _figures(tally: Tally | None) -> dict[str, Any]:
    return (
        tally.model_dump(exclude={"num_rows"}) | {"num_expected": tally.num_rows} if tally else {}
    )


def comparison_lines(run: RunFolder) -> tuple[ComparisonLine, ...]:
    """Newest first."""
    try:
        return _Lines.model_validate_json(_list_file(run).read_bytes()).lines
    except (FileNotFoundError, ValidationError):
        return ()


def find_comparison(run: RunFolder, comparison_id: str) -> Comparison:
    """The id may be user text. Raises RunError if the run has none of that id."""
    file = run.comparisons_folder / f"{comparison_id}.json"
    if not _ID.fullmatch(comparison_id) or not file.is_file():
        raise RunError("This run has no such comparison.", "Choose one from its list.")
    return Comparison.model_validate_json(file.read_bytes())


def delete_comparison(run: RunFolder, comparison_id: str) -> None:
    """Raises RunError."""
    found = find_comparison(run, comparison_id)
    _write_lines(run, tuple(line for line in comparison_lines(run) if line != found.line))
    (run.comparisons_folder / f"{comparison_id}.json").unlink(missing_ok=True)


def _list_file(run: RunFolder) -> Path:
    return run.comparisons_folder / "list.json"


def _write_lines(run: RunFolder, lines: tuple[ComparisonLine, ...]) -> None:
    write_atomically(_list_file(run), _Lines(lines=lines).model_dump_json())
