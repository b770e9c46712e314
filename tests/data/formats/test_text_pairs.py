"""Conversations as pairs of texts: [[question, answer], ...] and [[role, text], ...]."""

import json
from typing import Any

import pytest

from qlora_space.core.errors import DatasetError
from qlora_space.data import Message, Row, RowProblem, detect, to_example

ASKED = (
    Message("user", "Hi"),
    Message("assistant", "Hello"),
    Message("user", "Name?"),
    Message("assistant", "Ada"),
)


def convert(values: dict[str, Any]) -> Any:
    return to_example(Row(1, "here", values), detect(list(values), [values]))


@pytest.mark.parametrize("column", ["turns", "conversation", "conversations", "messages", "dialog"])
@pytest.mark.parametrize(
    "pairs",
    [
        [["Hi", "Hello"], ["Name?", "Ada"]],
        [["user", "Hi"], ["assistant", "Hello"], ["User", "Name?"], ["Assistant", "Ada"]],
        [["Hi", "Hello"], ["Name?", "Ada"], ["Bye", None]],
    ],
)
def test_pairs_of_texts_in_a_column_named_like_a_conversation_are_its_turns(
    column: str, pairs: list[list[str]]
) -> None:
    assert convert({"id": "1", column: pairs}) == ASKED
    assert convert({"id": "1", column: json.dumps(pairs)}) == ASKED


def test_a_system_text_of_its_own_goes_before_the_pairs() -> None:
    assert convert({"system": "Be short.", "turns": [["Hi", "Hello"]]})[0].role == "system"


@pytest.mark.parametrize(
    "values",
    [
        {"turns": [["Hi", "Hello", "there"]]},
        {"turns": [["user", "Hi"], ["Hello", "there"]]},  # a role, or a question?
        {"turns": [["user", "Hi"], ["user", "Hello"]]},  # no answer
        {"entities": [["Paris", "place"], ["Ada", "person"]]},  # pairs of what?
    ],
)
def test_other_lists_of_texts_are_no_conversation(values: dict[str, Any]) -> None:
    with pytest.raises(DatasetError):
        detect(list(values), [values])


def test_a_row_that_is_no_list_of_pairs_is_left_out() -> None:
    found = detect(["turns"], [{"turns": [["Hi", "Hello"]]}])
    assert isinstance(
        to_example(Row(1, "here", {"turns": [["Hi", "user"], ["x"]]}), found), RowProblem
    )
    assert isinstance(
        to_example(Row(1, "here", {"turns": [["user", "Hi"], ["a", "b"]]}), found), RowProblem
    )


def test_pairs_of_texts_are_no_answer() -> None:
    with pytest.raises(DatasetError):
        detect(["question", "answer"], [{"question": "Who?", "answer": [["Ada", "a person"]]}])
