"""Differences and likelihoods as markup: every character of an answer is there once, marked by what changed."""

import html
import re

import pytest

from qlora_space.app.ui.render.answers import changes_of_mind, differing, odds
from qlora_space.core.comparison import PaneAnswer, TokenOdds
from tests.app.ui.fake import HOSTILE


def unmarked(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


@pytest.mark.parametrize(
    ("base", "adapted"),
    [
        ("", ""),
        ("In the attic.", "In the cellar, I think."),
        (f"{HOSTILE} one", f"two {HOSTILE}"),
        ("a\nb\n\nc", "a\nB\n\nc d"),
        ("x " * 4000, "y " * 4000),
    ],
)
def test_both_texts_are_whole_and_only_what_differs_is_marked(base: str, adapted: str) -> None:
    left, right = differing(base, adapted)
    assert (unmarked(left), unmarked(right)) == (base, adapted)
    assert "<img" not in left + right
    assert "<ins>" not in left
    assert "<del>" not in right
    kept = [re.sub(r"<(del|ins)>.*?</\1>", "", m, flags=re.DOTALL) for m in (left, right)]
    assert kept[0] == kept[1] or len(base) > 3000


def test_the_same_answer_has_no_marks() -> None:
    assert differing("As it is.", "As it is.") == ("As it is.", "As it is.")


def answer(*tokens: tuple[str, float, float, str]) -> PaneAnswer:
    made = [TokenOdds(text=t, base=b, adapted=a, rival=r) for t, b, a, r in tokens]
    return PaneAnswer(text="".join(t.text for t in made), tokens=tuple(made))


def test_tokens_say_how_much_likelier_the_adapter_made_them() -> None:
    shown = odds(answer(("In", -5, -0.1, "The"), (" the", -0.1, -0.1, ""), (HOSTILE, -0.1, -3, "")))
    assert unmarked(shown) == f"In the{HOSTILE}"
    assert (
        'class="odds up-3 changed" title="Base 0.7 %, adapted 90 %. The base would write “The”."'
        in shown
    )
    assert 'class="odds same"' in shown
    assert 'class="odds down-2"' in shown
    assert "<img" not in shown


def test_changes_of_mind_stand_in_their_order_with_what_was_before() -> None:
    tokens = [("In", -0.2, -0.1, ""), (" the", -4, -0.1, "\n"), (" attic", -9, -0.1, HOSTILE)]
    table = changes_of_mind(answer(*tokens), "Adapted")
    assert "2 of 3 tokens" in table
    assert table.index("↵") < table.index("…In the")
    assert "<img" not in table
    assert "would write the same" in changes_of_mind(answer(tokens[0]), "Adapted")
    assert changes_of_mind(PaneAnswer(text="x"), "Adapted") == ""
