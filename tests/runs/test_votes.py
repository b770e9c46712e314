"""Votes stay with their run, and what was preferred is a dataset of chosen and rejected answers."""

import json
from pathlib import Path

import pytest

from qlora_space.core.comparison import ComparedRow, PaneAnswer, Turn
from qlora_space.core.errors import DiskFull, RunError
from qlora_space.runs import votes as votes_module
from qlora_space.runs.votes import Choice, Tally, Vote, add_vote, preference_rows, tally, votes
from tests.runs.folders import demo_run


def vote(choice: Choice, number: int = 0) -> Vote:
    row = ComparedRow(
        prompt="Where?",
        system="Be brief.",
        history=((Turn(prompt="Who?", answer="Mira."),),),
        answers=(PaneAnswer(text="b"), PaneAnswer(text="a\u2028")),
    )
    return Vote(
        time=1.0, comparison="0" * 16, number=number, label="Adapted", choice=choice, row=row
    )


def test_votes_come_back_in_their_order_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    assert votes(run) == []
    cast = [vote("adapted"), vote("base", 1), vote("tie", 2), vote("adapted", 3)]
    for each in cast:
        add_vote(run, each)
    with run.votes_file.open("a") as file:
        file.write('{"time": 1.0, "compar')
    assert votes(run) == cast
    assert tally(votes(run)) == Tally(wins=2, losses=1, ties=1)


def test_decided_votes_are_rows_of_messages_and_ties_are_none() -> None:
    lines = preference_rows([vote("adapted"), vote("tie"), vote("base")]).split("\n")[:-1]
    first, second = map(json.loads, lines)
    assert [m["role"] for m in first["prompt"]] == ["system", "user", "assistant", "user"]
    assert first["prompt"][2]["content"] == "Mira."
    assert (first["chosen"][0]["content"], first["rejected"][0]["content"]) == ("a\u2028", "b")
    assert (second["chosen"][0]["content"], second["rejected"][0]["content"]) == ("b", "a\u2028")


def test_no_more_votes_than_are_read_are_kept_and_a_full_disk_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = demo_run(tmp_path)
    monkeypatch.setattr(votes_module, "_MOST_VOTES", 1)
    add_vote(run, vote("tie"))
    with pytest.raises(RunError, match="as many as are kept"):
        add_vote(run, vote("tie"))
    run.votes_file.unlink()
    run.votes_file.symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="could not be kept"):
        add_vote(run, vote("tie"))
