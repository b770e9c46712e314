"""The table of a comparison: every row in the order that was asked for, and figures that are those of the rows."""

import pytest

from qlora_space.app.ui.render.compare_table import (
    FILTERS,
    ORDERS,
    Order,
    Which,
    arranged,
    rows_table,
    summary,
)
from qlora_space.core.comparison import ComparedRow, CompareOptions, Done, PaneAnswer, TokenOdds
from qlora_space.core.scoring.overlap import token_f1
from qlora_space.runs.comparisons import Comparison, ComparisonLine
from tests.app.ui.fake import HOSTILE

LABELS = ("Base", "Adapted")


def row(gain: float | None, shift: float = 1.0, right: str = "none") -> ComparedRow:
    """`right`: who answers as expected."""
    odds = (TokenOdds(text="x", base=-shift, adapted=0.0),)
    base = PaneAnswer(
        text="b", is_right=right == "base", expected_log_prob=-5.0 if gain is not None else None
    )
    adapted = PaneAnswer(
        text="a",
        tokens=odds,
        is_right=right == "adapted",
        expected_log_prob=None if gain is None else -5.0 + gain,
    )
    return ComparedRow(prompt=f"{gain} {shift}", expected="e", answers=(base, adapted))


ROWS = [row(0.5, 3, "adapted"), row(-2, 1, "base"), row(None, 9), row(4, 2), row(0.1, 0)]


def done_of(rows: list[ComparedRow]) -> Done:
    return Done(
        rows=tuple(rows), base_fingerprint="f", same_base=True, prompt_tokens=1, tokens_per_second=1, seconds=1
    )  # fmt: skip


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("data", [0, 1, 2, 3, 4]),
        ("gain", [3, 0, 4, 1, 2]),
        ("loss", [1, 4, 0, 3, 2]),
        ("shift", [2, 0, 3, 1, 4]),
    ],
)
def test_rows_stand_in_the_order_that_was_asked_for(order: Order, wanted: list[int]) -> None:
    assert [number for number, _ in arranged(ROWS, order)] == wanted


def test_at_random_every_row_is_there_once_and_again_in_the_same_place() -> None:
    first = [number for number, _ in arranged(ROWS, "random")]
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert first == [number for number, _ in arranged(ROWS, "random")]


@pytest.mark.parametrize(
    ("which", "wanted"),
    [("all", [0, 1, 2, 3, 4]), ("won", [0]), ("lost", [1]), ("both_wrong", [2, 3, 4])],
)
def test_a_filter_keeps_rows_by_who_was_right(which: Which, wanted: list[int]) -> None:
    assert [number for number, _ in arranged(ROWS, "data", which)] == wanted


def test_the_summary_counts_who_was_right_and_averages_what_was_gained() -> None:
    words = summary(done_of(ROWS), LABELS)
    assert "Exact answers, of 5: <b>Base</b> 1, <b>Adapted</b> 1." in words
    assert "likelier on 3 of 4 prompts: +0.65 nats per token on average." in words
    many = summary(done_of([row(1.0), row(2.0)] * 20), LABELS)
    assert "+1.5 nats per token on average (95 % interval +1.3 to +1.7)" in many
    unknown = ROWS[0].model_copy(update={"expected": ""})
    assert "1 prompt, none with an expected answer" in summary(done_of([unknown]), LABELS)


def test_answers_that_are_worth_a_part_have_a_mean_and_who_is_better_is_shown() -> None:
    answers = ("a red kite", "a red lamp"), ("a lamp", "a red kite above"), ("a", "b")
    rows = [
        ComparedRow(
            prompt="Who?", expected="a red kite", answers=tuple(PaneAnswer(text=t) for t in each)
        )
        for each in answers
    ]
    done = done_of(rows).judged("f1")
    assert "Shared words (F1), mean of 3: <b>Base</b> " in summary(done, LABELS)
    assert done.tally is not None
    for pane in (0, 1):
        worth = [token_f1(each[pane], "a red kite") for each in answers]
        assert done.tally.means[pane] == pytest.approx(sum(worth) / 3)
    found = {
        which: [number for number, _ in arranged(done.rows, "data", which)] for _, which in FILTERS
    }
    assert found == {"all": [0, 1, 2], "won": [1], "lost": [0], "both_wrong": [1, 2]}
    line = ComparisonLine(id="0", time=0, title="", labels=LABELS, num_questions=3)
    table = rows_table(Comparison(line=line, options=CompareOptions(), done=done))
    assert table.count("as expected") == 1
    assert "80 %" in table, "an answer with one word more"


def test_an_answer_in_other_words_that_comes_to_the_number_is_right() -> None:
    answers = (PaneAnswer(text="It is 7."), PaneAnswer(text="So 3 + 5 = 8.\n#### 8"))
    row = ComparedRow(prompt="How many?", expected="3 and 5 are 8\n#### 8", answers=answers)
    done = done_of([row]).judged("number")
    assert "Right number, of 1: <b>Base</b> 0, <b>Adapted</b> 1." in summary(done, LABELS)
    line = ComparisonLine(id="0", time=0, title="", labels=LABELS, num_questions=1)
    table = rows_table(Comparison(line=line, options=CompareOptions(), done=done))
    assert table.count(">right<") == 1
    assert "So 3 + 5 = 8." in table


@pytest.mark.parametrize("order", [value for _, value in ORDERS])
@pytest.mark.parametrize("which", [value for _, value in FILTERS])
def test_no_text_of_a_row_is_markup(order: Order, which: Which) -> None:
    answers = tuple(PaneAnswer(text=HOSTILE, is_right=False) for _ in LABELS)
    hostile = ComparedRow(prompt=HOSTILE, expected=HOSTILE, answers=answers)
    line = ComparisonLine(id="0", time=0, title="", labels=(HOSTILE, HOSTILE), num_questions=1)
    kept = Comparison(line=line, options=CompareOptions(), done=done_of([hostile]))
    assert "<img" not in rows_table(kept, order, which) + summary(kept.done, line.labels)
