"""The change of the loss and its interval, from what was measured."""

from dataclasses import replace

import numpy as np
import pytest

from qlora_space.core.comparison import ComparedRow, Done, PaneAnswer
from qlora_space.core.general_questions import GENERAL_QUESTIONS
from qlora_space.core.options import Score
from qlora_space.core.scoring import SCORE_NAMES
from qlora_space.runs import Measure, RowLosses
from qlora_space.train.forgetting import right_answers
from qlora_space.train.held_out import HeldOut
from qlora_space.train.report import change_of, measures_of


def rows_of(num_texts: int, num_pieces: int, **changed: object) -> RowLosses:
    """Pieces of one text change alike."""
    changes = np.repeat(np.random.default_rng(0).normal(-1, 2, num_texts), num_pieces)
    n = num_texts * num_pieces
    rows = RowLosses(
        tokens=(4,) * n,
        base=(10.0,) * n,
        trained=tuple((10 + changes).tolist()),
        pieces=(num_pieces,) * num_texts,
    )
    return rows.model_copy(update=changed)


def test_many_pieces_of_few_texts_give_no_interval() -> None:
    assert change_of(rows_of(10, 20)) is None
    assert change_of(rows_of(10, 20, pieces=())) is not None


def test_a_text_counts_once_however_many_pieces_it_has() -> None:
    whole, cut = change_of(rows_of(30, 1)), change_of(rows_of(30, 9))
    alone = change_of(rows_of(30, 9, pieces=()))
    assert whole
    assert cut
    assert alone
    assert cut.change == whole.change == alone.change
    assert np.isclose(cut.high - cut.low, whole.high - whole.low)
    assert alone.high - alone.low < 0.5 * (cut.high - cut.low)


def measures(score: str, answers: list[str], **changed: object) -> dict[str, Measure]:
    """Of a base that is always wrong."""
    fixed = HeldOut(
        rows=None, prompts=(), questions=(), expected=("#### 7",) * 40, limits=(), num_scored=40, stop_token_ids=(),
        can_match=True, general=None,
    )  # fmt: skip
    held = replace(fixed, **changed)  # type: ignore[arg-type]
    found = measures_of(score, held, ["?"] * len(answers), answers)  # type: ignore[arg-type]
    return {measure.name: measure for measure in found}


def test_answers_become_measures_with_an_interval_and_their_number() -> None:
    found = measures("number", ["It is 7."] * 20 + ["8"] * 20)
    assert list(found) == ["number", "exact"]
    right, exact = found["number"], found["exact"]
    assert (right.num_rows, right.means, right.is_count) == (40, (0.0, 0.5), True)
    assert right.change
    assert right.change.is_better
    assert right.change.low < 0.5 < right.change.high
    assert exact.means == (0.0, 0.0)
    assert exact.change
    assert exact.change.low < 0 < exact.change.high


def test_few_answers_have_no_interval_and_long_ones_are_never_exact() -> None:
    assert measures("number", ["7"] * 19)["number"].change is None
    assert list(measures("number", ["7"] * 30, can_match=False)) == ["number"]
    assert measures("none", []) == {}


@pytest.mark.parametrize("score", [name for name in SCORE_NAMES if name != "none"])
def test_a_comparison_says_of_the_same_answers_what_the_report_says(score: Score) -> None:
    expected = ["#### 7", '{"a": 1, "b": 2}', "B) a red kite", "x = 1", "a red kite in the park"]
    answers = ["7", '{"a": 1, "b": 3}', "The answer is B", "x = = 1", "a red lamp in the park"]
    held = HeldOut(
        rows=None, prompts=(), questions=(), expected=tuple(expected), limits=(), num_scored=5, stop_token_ids=(),
        can_match=True, general=None,
    )  # fmt: skip
    report = measures_of(score, held, ["?"] * 5, answers)[0]
    rows = [
        ComparedRow(prompt="?", expected=e, answers=(PaneAnswer(text="?"), PaneAnswer(text=a)))
        for e, a in zip(expected, answers, strict=True)
    ]
    done = Done(
        rows=tuple(rows), base_fingerprint="", same_base=True, prompt_tokens=1, tokens_per_second=1, seconds=1
    ).judged(score)  # fmt: skip
    assert done.tally is not None
    assert (done.tally.measure, done.tally.means) == (report.name, report.means)


def test_right_answers_to_general_questions_are_counted_by_kind() -> None:
    perfect = [question.accepted[0] for question in GENERAL_QUESTIONS]
    found = right_answers(perfect)
    assert {name: len(values) for name, values in found.items()} == {
        "general": 60, "knowledge": 20, "instructions": 20, "arithmetic": 20,
    }  # fmt: skip
    assert all(value == 1 for values in found.values() for value in values)
    few = right_answers(["?", *perfect[1:20]])
    assert (sum(few["general"]), len(few["general"]), sum(few["knowledge"])) == (19, 20, 6)
