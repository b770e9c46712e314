"""Sixty general questions: each can be answered rightly, and in the wrong way."""

import pytest

from qlora_space.core.general_questions import GENERAL_QUESTIONS, GeneralQuestion


def test_there_are_twenty_of_each_kind_and_any_first_few_are_mixed() -> None:
    kinds = [question.kind for question in GENERAL_QUESTIONS]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "knowledge": 20,
        "instructions": 20,
        "arithmetic": 20,
    }
    assert all(len(set(kinds[at : at + 3])) == 3 for at in range(0, 60, 3))
    assert len({question.prompt for question in GENERAL_QUESTIONS}) == 60


@pytest.mark.parametrize("question", GENERAL_QUESTIONS, ids=lambda question: question.prompt[:40])
def test_every_accepted_answer_is_right_and_no_other_question_s_is(
    question: GeneralQuestion,
) -> None:
    for accepted in question.accepted:
        assert question.is_right(accepted.capitalize())
        assert question.is_right(f"{accepted}.")
    assert not question.is_right("")
    assert not question.is_right("I do not know.")
    assert not question.is_right(question.prompt)


def test_what_counts_depends_on_the_kind() -> None:
    knowledge, instructions, arithmetic = GENERAL_QUESTIONS[:3]
    assert knowledge.is_right("The capital of France is Paris, of course.")
    assert not knowledge.is_right("Parisian")
    assert not instructions.is_right("The opposite of hot is cold.")
    assert arithmetic.is_right("7 + 5 = 12")
    assert not arithmetic.is_right("7 + 5")
