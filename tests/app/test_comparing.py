"""A comparison is kept with the run of its owner, and only there."""

import shutil
from pathlib import Path

import pytest

from qlora_space.app.comparing import compare_and_keep, labels, on_the_same_base
from qlora_space.core.comparison import CompareOptions, Done, Kept, Question
from qlora_space.core.errors import DiskFull, QloraSpaceError, RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import Visitor
from qlora_space.runs import comparisons, create_run
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
def test_a_pane_says_what_answers_in_it(
    actions: FakeActions, options: CompareOptions, label: str
) -> None:
    assert labels(actions, options) == ("Base", label)


def test_runs_on_the_same_base_stand_beside_each_other_and_no_others(actions: FakeActions) -> None:
    run, same = scripted_run(actions, "Tea", "finished"), scripted_run(actions, "Milk", "finished")
    larger = TrainingRequest(base="Qwen/Qwen3-0.6B")
    runs = actions.settings.runs_folder
    other = create_run(runs, larger, actions.plan(larger))
    shutil.copytree(run.adapter_folder, other.adapter_folder)
    assert on_the_same_base(actions, run) == [same]
    options = CompareOptions(others=(same.id,), strength=0.5)
    *_, done = compare_and_keep(actions, run, WHO, options)
    assert isinstance(done, Done)
    assert len(done.rows[0].answers) == 3
    assert comparison_lines(run)[0].labels == (
        "Base",
        "Adapted, strength 0.5",
        "Milk, strength 0.5",
    )
    with pytest.raises(RunError, match="was trained on another base"):
        list(compare_and_keep(actions, run, WHO, CompareOptions(others=(other.id,))))


def test_a_run_of_somebody_else_is_no_adapter_to_compare_with(actions: FakeActions) -> None:
    theirs = actions.for_visitor(Visitor("hub:2"))
    hers, run = scripted_run(theirs, "Milk", "finished"), scripted_run(actions, "Tea", "finished")
    assert on_the_same_base(actions, run) == []
    with pytest.raises(QloraSpaceError, match=r"The Hub (has no model|does not answer)"):
        list(compare_and_keep(actions, run, WHO, CompareOptions(others=(hers.id,))))
