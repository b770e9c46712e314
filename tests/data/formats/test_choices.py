"""Multiple choice: what is asked has the choices in it, and the answer is the right one in words."""

from typing import Any

import pytest

from qlora_space.core.errors import DatasetError
from qlora_space.data import Row, RowProblem, detect, to_example
from qlora_space.data.formats.choices import choice_columns
from qlora_space.data.inspection.unread import unread_columns
from qlora_space.data.tokenize_rows import Tokenized


def convert(rows: list[dict[str, Any]], **chosen: Any) -> list[Any]:
    found = detect(list(rows[0]), rows, **chosen)
    return [to_example(Row(1, "here", values), found) for values in rows]


LISTED = ["Oslo", "Rome", "Bern", "Riga"]
LABELLED = {"text": LISTED, "label": ["1", "2", "3", "4"]}


@pytest.mark.parametrize(
    ("choices", "answer", "label"),
    [
        (LISTED, 1, "B"),  # MMLU: counted from 0
        (LISTED, "B", "B"),
        (LISTED, "Rome", "B"),
        (LABELLED, "2", "2"),  # ARC: a label, which may be a figure
        ({"text": LISTED, "label": list("ABCD")}, "B", "B"),
        ({"text": LISTED, "label": [1, 2, 3, 4]}, 2, "2"),  # a label before an index
        ({"text": LISTED, "label": list("ABCD")}, 1, "B"),
    ],
)
def test_the_right_choice_is_answered_in_words(choices: Any, answer: Any, label: str) -> None:
    name = "answerKey" if isinstance(choices, dict) else "answer"
    values = {"id": "x", "question": "Capital of Italy?", "choices": choices, name: answer}
    question, reply = convert([values])[0]
    assert question.content.startswith("Capital of Italy?\n\n")
    assert [line.split(". ")[1] for line in question.content.splitlines()[2:]] == LISTED
    assert reply.content == f"{label}. Rome"


def test_a_choice_of_several_words_is_known_with_spaces_around_it() -> None:
    values = {"question": "Q?", "choices": ["New York", "Rome"], "answer": " New York\n"}
    assert convert([values])[0][1].content == "A. New York"


def test_choices_that_cannot_be_read_make_it_less_sure() -> None:
    values = {"question": "Capital of Italy?", "choices": "['Oslo' 'Rome']", "answer": 1}
    found = detect(list(values), [values])
    assert found.confidence < 0.8
    assert "“choices” is left out" in found.reason


@pytest.mark.parametrize("answer", [4, -1, "E", None, True, "0"])
def test_an_answer_that_is_not_a_choice_is_a_problem(answer: Any) -> None:
    found = detect(["question", "choices", "answer"], [{"choices": LISTED, "answer": 1}])
    row = Row(1, "line 1", {"question": "Q?", "choices": LISTED, "answer": answer})
    problem = to_example(row, found)
    assert isinstance(problem, RowProblem)
    assert "not one of the choices" in problem.message


def test_choices_that_are_counted_from_one_are_refused() -> None:
    rows = [{"question": "Q?", "choices": ["a", "b", "c"], "answer": n} for n in (1, 3, 2)]
    with pytest.raises(DatasetError, match="counts the choices from 1"):
        detect(list(rows[0]), rows)
    zero = [*rows[:1], {**rows[0], "answer": 0}]
    assert detect(list(rows[0]), zero).mapping["choices"] == "choices"


def test_choices_may_have_letters_for_names() -> None:
    values = {"question": "Q?", "options": {"A": "one", "B": "two"}, "answer": "B"}
    assert convert([values])[0][-1].content == "B. two"


MMLU = {"question": "Capital of Italy?", **dict(zip("ABCD", LISTED, strict=True))}


@pytest.mark.parametrize(
    ("names", "answer", "label"),
    [
        ("A B C D", "B", "B"),  # MMLU as CSV
        ("A B C D", 1, "B"),
        ("A B C D", "Rome", "B"),
        ("a b c d", "b", "b"),
        ("opa opb opc opd", 1, "B"),  # MedMCQA
        ("option_a option_b option_c option_d", "B", "B"),
        ("option1 option2 option3 option4", "2", "2"),
        ("choice0 choice1 choice2 choice3", 1, "1"),
        ("Option A,Option B,Option C,Option D", "B", "B"),
    ],
)
def test_choices_in_columns_of_their_own_are_read(names: str, answer: Any, label: str) -> None:
    columns = names.split("," if "," in names else " ")
    values = {"question": "Capital of Italy?", **dict(zip(columns, LISTED, strict=True))}
    question, reply = convert([values | {"answer": answer}])[0]
    first = {"B": "A", "b": "a", "2": "1", "1": "0"}[label]
    assert question.content.startswith(f"Capital of Italy?\n\n{first}. Oslo\n{label}. Rome\n")
    assert reply.content == f"{label}. Rome"


def test_columns_of_choices_are_read_and_no_longer_told_as_left_out() -> None:
    rows = [MMLU | {"answer": "B"}]
    found = detect(list(rows[0]), rows)
    assert found.mapping["choices"] == "A + B + C + D"
    assert not found.is_guess
    row = Row(1, "here", rows[0])
    unused = Tokenized(row, None, RowProblem("too_long", ""), b"")
    assert not list(unread_columns([unused], found))


def test_a_row_with_fewer_choices_has_these_alone() -> None:
    for empty in ("", None):
        rows = [MMLU | {"answer": "B"}, MMLU | {"C": "", "D": empty, "answer": "A"}]
        assert convert(rows)[1][0].content == "Capital of Italy?\n\nA. Oslo\nB. Rome"


def test_a_person_may_leave_columns_of_choices_out() -> None:
    mapping = {"prompt": "question", "completion": "answer", "choices": ""}
    assert convert([MMLU | {"answer": "B"}], mapping=mapping)[0][0].content == "Capital of Italy?"
    given = mapping | {"choices": "A + B"}
    assert convert([MMLU | {"answer": "B"}], mapping=given)[0][0].content.endswith("B. Rome")
    with pytest.raises(DatasetError, match="There is no column"):
        convert([MMLU | {"answer": "B"}], mapping=mapping | {"choices": "A + X"})


def test_columns_of_choices_with_an_answer_that_is_none_of_them_are_a_guess() -> None:
    rows = [MMLU | {"answer": "E"}]
    found = detect(list(rows[0]), rows)
    assert "choices" not in found.mapping
    assert found.is_guess
    assert "“A + B + C + D” seem to be choices" in found.reason


def test_columns_of_choices_that_are_counted_from_one_are_refused() -> None:
    rows = [MMLU | {"answer": n} for n in (1, 4, 2)]
    with pytest.raises(DatasetError, match="counts the choices from 1"):
        detect(list(rows[0]), rows)


def test_a_choice_is_never_taken_for_the_answer() -> None:
    rows = [MMLU | {"cop": 1}]
    with pytest.raises(DatasetError):
        detect(list(rows[0]), rows)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("q a", ""),
        ("a b", "a b"),
        ("A C", ""),  # B is missing
        ("b c d", ""),
        ("D B A C answer", "A B C D"),
        ("choice1 choice2 option_a", "choice1 choice2"),
        ("1 2 3", ""),
    ],
)
def test_columns_of_choices_go_on_from_the_first_label(columns: str, expected: str) -> None:
    assert choice_columns(columns.split()) == expected.split()
