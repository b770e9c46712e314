"""A comparison is kept with the run of its owner, and only there."""

from pathlib import Path

import pytest

from qlora_space.app.comparing import compare_and_keep, labels
from qlora_space.core.comparison import CompareOptions, Done, Kept, Question
from qlora_space.core.errors import DiskFull, RunError
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import Visitor
from qlora_space.runs import comparisons
from qlora_space.runs.comparisons import comparison_lines, find_comparison
from tests.app.ui.fake import FakeActions, scripted_run

WHO = [Question(prompt="Who?"), Question(prompt="Where?", expected="In Olm.")]


@pytest.fixture
def actions(tmp_path: Path) -> FakeActions:
    return FakeActions(Settings(home=tmp_path), step_seconds=0.0, num_steps=2)


def test_what_was_answered_is_kept_before_it_is_said_to_be_done(actions: FakeActions) -> None:
    run, options = scripted_run(actions, "Tea", "finished"), CompareOptions(strength=0.5)
    *_, kept, done = compare_and_keep(actions, run, WHO, options)
    assert isinstance(kept, Kept)
    assert isinstance(done, Done)
    found = find_comparison(run, kept.id)
    assert (found.done, found.options) == (done, options)
    assert found.line.num_right == (0, 1)


def test_a_stranger_compares_nothing_of_anothers_run(actions: FakeActions) -> None:
    run = scripted_run(actions, "Tea", "finished")
    with pytest.raises(RunError, match="There is no run"):
        list(compare_and_keep(actions.for_visitor(Visitor("hub:2")), run, WHO, CompareOptions()))
    assert not comparison_lines(run)


def test_on_a_full_disk_the_answers_come_all_the_same(
    actions: FakeActions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scripted_run(actions, "Tea", "finished")

    def full(*_: object) -> None:
        raise DiskFull("The disk is full.", "Free some space.")

    monkeypatch.setattr(comparisons, "write_atomically", full)
    *_, before, done = compare_and_keep(actions, run, WHO, CompareOptions())
    assert isinstance(done, Done)
    assert not isinstance(before, Kept)


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (CompareOptions(), "Adapted"),
        (CompareOptions(step=40), "Adapted, step 40"),
        (CompareOptions(step=40, strength=0.25), "Adapted, step 40, strength 0.25"),
    ],
)
def test_a_pane_says_what_answers_in_it(options: CompareOptions, label: str) -> None:
    assert labels(options) == ("Base", label)
