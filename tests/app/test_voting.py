"""Pairs are shuffled by the server, each is voted on once, and only by the run's owner."""

from collections import Counter
from pathlib import Path

import pytest

from qlora_space.app.comparing import compare_and_keep
from qlora_space.app.voting import Ballot, cast, newest_batch, open_ballot
from qlora_space.core.comparison import CompareOptions, Question
from qlora_space.core.errors import RunError
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import Visitor
from qlora_space.runs import RunFolder
from qlora_space.runs.votes import votes
from tests.app.ui.fake import FakeActions, scripted_run


@pytest.fixture
def actions(tmp_path: Path) -> FakeActions:
    return FakeActions(Settings(home=tmp_path), step_seconds=0.0, num_steps=2)


@pytest.fixture
def run(actions: FakeActions) -> RunFolder:
    run = scripted_run(actions, "Tea", "finished")
    questions = [Question(prompt=str(number)) for number in range(12)]
    list(compare_and_keep(actions, run, questions, CompareOptions()))
    list(compare_and_keep(actions, run, questions[:1], CompareOptions()))
    return run


def test_every_pair_is_voted_on_once_and_the_side_says_nothing(
    actions: FakeActions, run: RunFolder
) -> None:
    ballot = open_ballot(actions, run, newest_batch(actions, run))
    sides: Counter[str] = Counter()
    while ballot.row is not None:
        left, right = ballot.sides
        assert {left, right} == {ballot.row.base.text, ballot.row.adapted.text}
        side = "left" if left == ballot.row.adapted.text else "right"
        sides[side] += 1
        ballot = cast(actions, run, ballot, side)
    found = votes(run)
    assert {vote.choice for vote in found} == {"adapted"}
    assert sorted(vote.number for vote in found) == list(range(12))
    assert [vote.number for vote in found] != list(range(12)), "in random order"
    assert not any(answer.tokens for vote in found for answer in vote.row.answers)
    assert open_ballot(actions, run, newest_batch(actions, run)).row is None
    with pytest.raises(RunError, match="no pair to vote on"):
        cast(actions, run, ballot, "left")


def test_sides_are_drawn_anew_for_every_pair() -> None:
    drawn, ballot = Counter(), Ballot("0", "Adapted")
    for _ in range(400):
        ballot = ballot.next()
        drawn[ballot.is_swapped] += 1
    assert 140 < drawn[True] < 260


@pytest.mark.parametrize(
    ("is_swapped", "side", "choice"),
    [
        (False, "left", "base"),
        (False, "right", "adapted"),
        (True, "left", "adapted"),
        (True, "right", "base"),
        (True, "tie", "tie"),
    ],
)
def test_a_side_is_whose_answer_stands_there(is_swapped: bool, side: str, choice: str) -> None:
    assert Ballot("0", "Adapted", is_swapped=is_swapped).choice_of(side) == choice


def test_answers_that_are_the_same_are_no_pair(actions: FakeActions, run: RunFolder) -> None:
    questions = [Question(prompt="a"), Question(prompt="b")]
    list(compare_and_keep(actions, run, questions, CompareOptions(strength=0)))
    ballot = open_ballot(actions, run, newest_batch(actions, run))
    assert (ballot.row, ballot.num_all) == (None, 0)


def test_a_stranger_votes_on_nothing(actions: FakeActions, run: RunFolder) -> None:
    batch = newest_batch(actions, run)
    ballot = open_ballot(actions, run, batch)
    bob = actions.for_visitor(Visitor("hub:2"))
    for act in (
        lambda: newest_batch(bob, run),
        lambda: open_ballot(bob, run, batch),
        lambda: cast(bob, run, ballot, "left"),
    ):
        with pytest.raises(RunError, match="There is no run"):
            act()
    assert votes(run) == []
