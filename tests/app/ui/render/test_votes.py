"""A pair says nothing of which is which, and the standing says how sure it is."""

import pytest

from qlora_space.app.ui.render.votes import pair, standing
from qlora_space.app.voting import Ballot
from qlora_space.core.comparison import ComparedRow, PaneAnswer, Turn
from qlora_space.runs.votes import Tally
from tests.app.ui.fake import HOSTILE


def test_a_pair_is_the_same_markup_whichever_side_the_adapter_is_on() -> None:
    row = ComparedRow(prompt="p", answers=(PaneAnswer(text="ONE"), PaneAnswer(text="TWO")))
    plain, swapped = (
        pair(Ballot("0", "Adapted", ((3, row),), is_swapped=side, num_all=1))
        for side in (False, True)
    )
    assert plain.index("ONE") < plain.index("TWO")
    assert plain.replace("ONE", "x").replace("TWO", "y") == swapped.replace("TWO", "x").replace(
        "ONE", "y"
    )
    assert "dapted" not in plain
    assert "base" not in plain


def test_no_text_of_a_pair_is_markup() -> None:
    turn = Turn(prompt=HOSTILE, answer=HOSTILE)
    answers = (PaneAnswer(text=HOSTILE), PaneAnswer(text=f"{HOSTILE}!"))
    row = ComparedRow(prompt=HOSTILE, history=((turn,),), answers=answers)
    assert "<img" not in pair(Ballot("0", HOSTILE, ((0, row),), num_all=1))


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (Tally(), "No votes yet."),
        (Tally(ties=2), "2 ties, nothing decided."),
        (
            Tally(wins=7, losses=3),
            "Adapted won 7 of 10</b> (70 %; 95 % interval 40 % to 89 %). Too close to call",
        ),
        (Tally(wins=3, losses=3, ties=1), "1 tie. Neither is ahead."),
        (Tally(wins=30, losses=2), "That is enough to say that you prefer the adapted model."),
        (Tally(wins=2, losses=30), "That is enough to say that you prefer the base."),
    ],
)
def test_the_standing_says_what_the_votes_come_to(tally: Tally, words: str) -> None:
    assert words in standing(tally, "0" * 32)
