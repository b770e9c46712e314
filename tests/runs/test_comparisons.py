"""What was compared stays with its run: whole, newest first, no more than a hundred."""

from pathlib import Path

import pytest

from qlora_space.core.comparison import ComparedRow, CompareOptions, Done, PaneAnswer
from qlora_space.core.errors import RunError
from qlora_space.runs import comparisons
from qlora_space.runs.comparisons import (
    comparison_lines,
    delete_comparison,
    find_comparison,
    keep_comparison,
)
from tests.runs.folders import demo_run

LABELS = ("Base", "Adapted")


def done_of(*prompts: str, expected: str = "") -> Done:
    answers = (PaneAnswer(text="no", is_right=False), PaneAnswer(text="yes", is_right=True))
    rows = tuple(ComparedRow(prompt=p, expected=expected, answers=answers) for p in prompts)
    return Done(
        rows=rows, base_fingerprint="f", same_base=True, prompt_tokens=1, tokens_per_second=1, seconds=1
    )  # fmt: skip


def test_a_comparison_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    run, options = demo_run(tmp_path), CompareOptions(step=4, strength=0.5)
    assert comparison_lines(run) == ()
    first = keep_comparison(run, LABELS, options, done_of("Who?\n Where?", "When?", expected="yes"))
    second = keep_comparison(run, LABELS, CompareOptions(), done_of("x"))
    newest, line = comparison_lines(run)
    assert (newest.id, line.id) == (second, first)
    assert (line.title, line.num_questions, line.num_expected, line.num_right) == (
        "Who? Where?", 2, 2, (0, 2),
    )  # fmt: skip
    kept = find_comparison(run, first)
    assert kept.options == options
    assert kept.done == done_of("Who?\n Where?", "When?", expected="yes")
    delete_comparison(run, first)
    assert [each.id for each in comparison_lines(run)] == [second]
    with pytest.raises(RunError, match="no such comparison"):
        find_comparison(run, first)


@pytest.mark.parametrize("name", ["", "../plan", "list", "0" * 16, "0" * 15 + "\n"])
def test_a_name_that_is_no_comparison_of_the_run_is_refused(tmp_path: Path, name: str) -> None:
    run = demo_run(tmp_path)
    keep_comparison(run, LABELS, CompareOptions(), done_of("x"))
    with pytest.raises(RunError, match="no such comparison"):
        find_comparison(run, name)


def test_the_oldest_are_forgotten_and_one_that_is_too_long_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = demo_run(tmp_path)
    monkeypatch.setattr(comparisons, "_MOST_KEPT", 3)
    kept = [keep_comparison(run, LABELS, CompareOptions(), done_of(str(i))) for i in range(5)]
    assert [line.id for line in comparison_lines(run)] == kept[:1:-1]
    assert {file.stem for file in run.comparisons_folder.iterdir()} == {*kept[2:], "list"}
    monkeypatch.setattr(comparisons, "_MOST_BYTES", 10)
    assert keep_comparison(run, LABELS, CompareOptions(), done_of("long")) == ""
    assert len(comparison_lines(run)) == 3
