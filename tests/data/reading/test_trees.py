"""Single messages that answer each other become the conversations that they are, and each answer is learned once."""

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core.options import Format
from qlora_space.data import Row, RowProblem, Source, detect, open_source, to_example
from qlora_space.data.reading import trees
from qlora_space.data.reading.trees import with_trees_joined
from tests.data.conftest import write_jsonl


def message(id: str, parent: str | None, text: str, **more: Any) -> dict[str, Any]:
    role = "prompter" if text.endswith("?") else "assistant"
    return {"message_id": id, "parent_id": parent, "role": role, "text": text, **more}


BRANCHED = [
    message("a", None, "Tea?"),
    message("b", "a", "Yes."),
    message("c", "b", "Milk?"),
    message("d", "c", "No."),
    message("e", "c", "A drop."),  # another answer to c
    message("f", "a", "Later."),  # another answer to a
    message("g", "f", "When?"),  # that nobody answers
    message("k", "b", "Sugar?"),  # nor this, after an answer that others share
    message("h", None, "Cake?"),
    message("i", "h", "Please."),
]


def opened(folder: Path, rows: list[dict[str, Any]]) -> Source:
    return open_source(str(write_jsonl(folder / "a.jsonl", rows)), allow_local=True)


def joined(folder: Path, rows: list[dict[str, Any]], **chosen: Any) -> Source:
    return with_trees_joined(opened(folder, rows), chosen.get("format"), chosen.get("columns"))


def learned(source: Source) -> list[tuple[str, list[str]]]:
    """Of each row all turns, and those that are learned."""
    rows = list(source.rows())
    found = detect(list(rows[0].values), [row.values for row in rows])
    examples: list[Any] = [to_example(row, found) for row in rows]
    return [
        (
            " ".join(m.content for m in e),
            [m.content for m in e if m.role == "assistant" and m.is_trained],
        )
        for e in examples
    ]


def test_every_way_is_a_conversation_and_every_answer_is_learned_once(tmp_path: Path) -> None:
    source = joined(tmp_path, BRANCHED)
    assert learned(source) == [
        ("Tea? Yes. Milk? No.", ["Yes.", "No."]),
        ("Tea? Yes. Milk? A drop.", ["A drop."]),
        ("Tea? Later.", ["Later."]),
        ("Cake? Please.", ["Please."]),
    ]
    assert source.num_rows == 4
    assert [note.code for note in source.note()] == ["joined_messages"]
    assert [row.number for row in source.rows()] == [1, 2, 3, 4]
    assert next(source.rows()).location == "a.jsonl, line 4"


@pytest.mark.parametrize(
    "rows",
    [
        BRANCHED[1:],  # the first message is missing
        [*BRANCHED[:1], *BRANCHED[2:]],  # one between
        [*BRANCHED, message("j", "b", "Sugar?")],  # apart from its tree
        [*BRANCHED, message("i", "h", "Two.")],  # an id twice
        [*BRANCHED, {"role": "assistant", "text": "x", "parent_id": "h"}],  # without an id
        [message(n, None, "Tea?") for n in "abc"],  # nobody answers
        [message("a", "b", "Tea?"), message("b", "a", "Yes.")],  # in a circle
        [{"prompt": "Tea?", "completion": "Yes."}],
    ],
)
def test_what_is_no_file_of_whole_trees_is_left_as_it_is(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    source = joined(tmp_path, rows)
    assert [row.values for row in source.rows()] == rows
    assert not source.note()


def test_a_file_with_a_row_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in BRANCHED) + "{oops\n")
    source = open_source(str(file), allow_local=True)
    assert with_trees_joined(source, None, None) is source


def test_whoever_chose_to_have_each_message_alone_gets_that(tmp_path: Path) -> None:
    for chosen in ({"format": Format.TEXT}, {"columns": {"text": "text"}}):
        assert next(joined(tmp_path, BRANCHED, **chosen).rows()).values == BRANCHED[0]
    for chosen in (
        {"format": Format.MESSAGES, "columns": {"messages": "messages", "system": ""}},
        {"columns": {"messages": "messages"}},
    ):
        assert "messages" in next(joined(tmp_path, BRANCHED, **chosen).rows()).values


def test_no_more_is_read_and_joined_than_has_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path, BRANCHED)
    monkeypatch.setattr(trees, "_MOST_MESSAGES", 3)
    assert with_trees_joined(source, None, None) is source
    monkeypatch.undo()
    monkeypatch.setattr(trees, "_MOST_BYTES", 100)
    assert with_trees_joined(source, None, None) is source
    monkeypatch.undo()
    assert with_trees_joined(source, None, None) is not source


def test_ids_may_be_numbers_and_columns_in_capitals(tmp_path: Path) -> None:
    rows = [
        {"ID": 1, "Parent": None, "Role": "user", "Content": "Tea?"},
        {"ID": 2, "Parent": 1, "Role": "assistant", "Content": "Yes."},
    ]
    assert learned(joined(tmp_path, rows)) == [("Tea? Yes.", ["Yes."])]


def test_a_turn_of_an_unknown_role_is_a_problem_of_its_row(tmp_path: Path) -> None:
    rows = [*BRANCHED[:2], {**message("c", "b", "No."), "role": "narrator"}]
    rows += BRANCHED[7:]
    found: list[Row] = list(joined(tmp_path, rows).rows())
    kind = detect(["messages"], [row.values for row in found[1:]])
    assert isinstance(to_example(found[0], kind), RowProblem)
