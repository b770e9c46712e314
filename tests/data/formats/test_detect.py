import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data import (
    RULES,
    Labelled,
    Message,
    Preference,
    Row,
    RowProblem,
    Rule,
    ToolCall,
    detect,
    open_source,
    to_example,
    to_trained,
)
from qlora_space.data.tokenize_rows import detect_format

CHAT = (Message("user", "Hi"), Message("assistant", "Hello"))
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
WORSE = [TURNS[0], {"role": "assistant", "content": "No."}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "from", "content", "value", "type")), inner)
    ),
    max_leaves=8,
)


def convert(values: dict[str, Any], **chosen: Any) -> Any:
    """What the row holds."""
    found = detect(list(values), [values], **chosen)
    return to_example(Row(1, "here", values), found)


def trained(values: dict[str, Any], **chosen: Any) -> Any:
    """What supervised training learns of the row."""
    example = convert(values, **chosen)
    return example if isinstance(example, RowProblem) else to_trained(example, "here")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.format.value)
def test_the_example_in_the_table_is_detected_as_its_own_format(rule: Rule) -> None:
    values = json.loads(rule.example)
    assert detect(list(values), [values]).format is rule.format
    assert not isinstance(convert(values), RowProblem)


def test_every_format_of_a_request_has_a_rule() -> None:
    assert sorted(rule.format for rule in RULES) == sorted(Format)


@given(rule=st.sampled_from(RULES), cells=st.lists(JSON, min_size=8, max_size=8))
def test_a_row_of_anything_gives_an_example_or_a_problem_that_names_its_location(
    rule: Rule, cells: list[Any]
) -> None:
    good = json.loads(rule.example)
    found = detect(list(good), [good])
    odd = dict(zip(good, cells, strict=False))
    example = to_example(Row(1, "here", odd), found)
    if isinstance(example, RowProblem):
        assert "here" in example.message
    elif isinstance(example, tuple):
        assert example[-1].role == "assistant"


@pytest.mark.parametrize(
    "values",
    [
        {"messages": TURNS},
        {"messages": json.dumps(TURNS)},
        {"dialogue": TURNS, "id": 3},
        {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}},
        {
            "messages": [
                {"role": t["role"], "content": [{"type": "text", "text": t["content"]}]}
                for t in TURNS
            ]
        },
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {
            "conversation": [
                {"from": "user", "value": "Hi"},
                {"from": "assistant", "value": "Hello"},
            ]
        },
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "response": "Hello", "category": "x"},
        {"prompt": "Hi", "completion": "Hello"},
        {"Question": "Hi", "Answer": "Hello"},
        {"input": "Hi", "output": "Hello"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"prompt": "Hi", "chosen": TURNS, "rejected": WORSE},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": WORSE[1:]},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
        },
        {"chosen": TURNS, "rejected": WORSE},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No."},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No.",
        },
        {"prompt": "Hi", "completion": "Hello", "label": True},
        {"prompt": TURNS[:1], "completion": TURNS[1:], "label": "True"},
        {"messages": TURNS, "label": True},
        {"messages": TURNS, "id": [1, 2]},
        {"conversation": [{"input": "Hi", "output": "Hello"}]},
        {"conversation": [{"human": "Hi", "assistant": "Hello"}]},
        {"dialog": [{"speaker": "user", "text": "Hi"}, {"speaker": "bot", "text": "Hello"}]},
        {
            "contents": [
                {"role": "user", "parts": [{"text": "Hi"}]},
                {"role": "model", "parts": [{"text": "Hello"}]},
            ]
        },
        {"question": "Hi", "answers": {"text": ["Hello", "Hey"], "answer_start": [0, 1]}},
        {"question": "Hi", "answer": ["Hello", "Hey"]},
        {"q": "Hi", "a": "Hello"},
        {"foo": "Hi", "bar": "Hello"},
        {"messages": [*TURNS, {"role": "user", "content": "unanswered"}]},
    ],
)
def test_many_spellings_are_the_same_conversation(values: dict[str, Any]) -> None:
    assert trained(values) == CHAT


def test_what_a_question_is_about_belongs_to_it() -> None:
    values = {"context": "A hat lies there.", "question": "What?", "answers": {"text": ["A hat"]}}
    assert convert(values) == (
        Message("user", "What?\n\nA hat lies there."),
        Message("assistant", "A hat"),
    )


def test_a_column_of_reasoning_belongs_to_the_answer() -> None:
    values = {"Question": "Hi", "Complex_CoT": "Polite.", "Response": "Hello"}
    assert convert(values)[-1] == Message("assistant", "Hello", reasoning="Polite.")


def test_calls_in_a_column_of_answers_are_calls() -> None:
    values = {"query": "Where?", "tools": json.dumps([TOOL]), "answers": json.dumps([CALL])}
    assert convert(values) == CALLED[:3]


def test_pairs_beside_an_instruction_are_not_the_conversation() -> None:
    values = {"examples": [{"input": "x", "output": "y"}], "instruction": "Hi", "output": "Hello"}
    assert convert(values) == CHAT


def test_a_column_that_is_known_by_its_values_alone_is_less_sure() -> None:
    named, unnamed = ({name: TURNS} for name in ("messages", "stuff"))
    assert detect(list(named), [named]).confidence > detect(list(unnamed), [unnamed]).confidence


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history() -> None:
    values = {
        "system": "Be brief.",
        "instruction": "Translate.",
        "input": "cheese",
        "output": "fromage",
        "history": [["Hi", "Hello"]],
    }
    assert convert(values) == (
        Message("system", "Be brief."),
        *CHAT,
        Message("user", "Translate.\n\ncheese"),
        Message("assistant", "fromage"),
    )


def test_the_user_has_the_last_word_on_format_and_columns() -> None:
    values = {"text": "some text", "q": "Hi", "a": "Hello"}
    found = detect(list(values), [values], mapping={"prompt": "q", "completion": "a"})
    assert (found.format, found.confidence) == (Format.PROMPT_COMPLETION, 1.0)
    assert convert(values, mapping={"prompt": "q", "completion": "a"}) == CHAT
    assert convert(values, format=Format.TEXT) == "some text"


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DatasetError, match=r"no column 'quest'.*'q', 'a'"):
        detect(["q", "a"], [], mapping={"prompt": "quest"})


def test_a_part_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(DatasetError, match=r"'question' is not a part.*prompt, input, completion"):
        detect(["q"], [], Format.PROMPT_COMPLETION, {"question": "q"})


def test_objects_with_ids_for_keys_cost_no_more_than_others() -> None:
    """Within an object every key is a path, of which there are a million here."""
    cell = {
        f"a{i}": {f"b{j}": {f"c{k}": 1 for k in range(40)} for j in range(40)} for i in range(40)
    }
    rows = [{"id": f"{n}", "state": cell} for n in range(20)]
    started = time.process_time()
    with pytest.raises(DatasetError, match="no known format"):
        detect(["id", "state"], rows)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("values", "format"),
    [
        ({"prompt": "Hi", "completion": "Hello", "label": 1}, Format.KTO),
        ({"source": "Hi", "target": "Hallo"}, Format.PROMPT_COMPLETION),
        ({"text": "Hello.", "source": "a site"}, Format.TEXT),
    ],
)
def test_a_name_means_what_its_neighbours_make_it(values: dict[str, Any], format: Format) -> None:
    found = detect(list(values), [values])
    assert found.format is format
    assert not found.is_guess


def test_an_optional_part_is_left_out_if_it_is_mapped_to_nothing() -> None:
    row = {"question": "Hi", "answer": "Hello", "reasoning": "Polite."}
    assert detect(list(row), [row]).mapping["reasoning"] == "reasoning"
    found = detect(list(row), [row], None, {"reasoning": "", "completion": ""})
    assert found.mapping == {"prompt": "question", "completion": "answer"}


def test_columns_of_no_known_format_are_listed_and_none_is_named_at_random() -> None:
    with pytest.raises(DatasetError, match=r"'x', 'y', 'z'.*prompt=COLUMN,completion=COLUMN"):
        detect(["x", "y", "z"], [{"x": "a", "y": "b", "z": "c"}])


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"messages": [TURNS[0], {"role": "assistant", "content": " "}]}, "empty_answer"),
        ({"messages": TURNS[:1]}, "empty_answer"),
        ({"messages": TURNS[1:]}, "role_order"),
        ({"messages": [TURNS[0], {"role": "system", "content": "x"}, TURNS[1]]}, "role_order"),
        ({"messages": [TURNS[0], {"role": "alien", "content": "x"}]}, "bad_row"),
        ({"messages": [{"role": "tool", "content": "x"}, *TURNS]}, "role_order"),
        ({"messages": TURNS, "tools": "search"}, "bad_row"),
        ({"messages": [TURNS[0], {"from": "function_call", "value": "now"}]}, "bad_tool_call"),
        ({"messages": "not json"}, "bad_row"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TURNS[1]]}, "not_text"),
        ({"messages": [{"role": "user", "content": ""}, TURNS[1]]}, "empty_prompt"),
    ],
)
def test_what_cannot_be_used_has_a_code(values: dict[str, Any], code: str) -> None:
    problem = convert(values, format=Format.MESSAGES)
    assert isinstance(problem, RowProblem)
    assert problem.code == code


def test_two_answers_are_a_preference_with_what_they_share_as_its_prompt() -> None:
    whole = {"chosen": TURNS, "rejected": WORSE}
    expected = Preference(CHAT[:1], CHAT[1:], (Message("assistant", "No."),))
    assert convert(whole) == expected
    assert detect(list(whole), [whole]).format is Format.PREFERENCE
    assert convert({"question": "Hi", "chosen": "Hello", "rejected": "No."}) == expected
    assert convert({"chosen": TURNS, "rejected": TURNS}).code == "same_answers"


def test_the_input_of_an_instruction_belongs_to_the_prompt_of_a_preference() -> None:
    values = {"instruction": "Say", "input": "hi", "output": "x", "chosen": "a", "rejected": "b"}
    assert convert(values).prompt == (Message("user", "Say\n\nhi"),)


def test_a_labelled_answer_is_trained_only_if_it_is_wanted() -> None:
    values = {"prompt": "Hi", "completion": "Hello", "label": False}
    assert convert(values) == Labelled(CHAT[:1], CHAT[1:], label=False)
    assert trained(values).code == "unwanted_answer"


def test_a_label_that_is_a_class_is_an_answer() -> None:
    values = {"question": "Hi", "label": "greeting"}
    assert detect(list(values), [values]).format is Format.PROMPT_COMPLETION


CALL = {"name": "find", "arguments": {"what": "hat"}}
TOOL = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
CALLED = (
    Message("tools", json.dumps([{"type": "function", "function": TOOL}])),
    Message("user", "Where?"),
    Message("assistant", "", calls=(ToolCall("find", '{"what": "hat"}', "call00000"),)),
    Message("tool", "shelf", name="find", call_id="call00000"),
    Message("assistant", "On the shelf."),
)


@pytest.mark.parametrize(
    "values",
    [
        {
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": "Where?"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "shelf"},
                {"from": "gpt", "value": "On the shelf."},
            ],
        },
        {
            "tools": [{"type": "function", "function": TOOL}],
            "messages": [
                {"role": "user", "content": "Where?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "x",
                            "type": "function",
                            "function": {**CALL, "arguments": json.dumps(CALL["arguments"])},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "x", "content": "shelf"},
                {"role": "assistant", "content": "On the shelf."},
            ],
        },
    ],
    ids=["sharegpt", "openai"],
)
def test_a_called_tool_is_the_same_conversation_in_any_spelling(values: dict[str, Any]) -> None:
    assert convert(values) == CALLED


def test_a_call_in_a_turn_of_its_own_joins_the_answer_before_it() -> None:
    turns = [*TURNS, {"from": "function_call", "value": json.dumps([CALL, CALL])}]
    (_, answer) = convert({"messages": turns})
    assert (answer.content, [call.id for call in answer.calls]) == (
        "Hello",
        ["call00000", "call00001"],
    )


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_beside_the_answer(key: str) -> None:
    turns = [TURNS[0], {**TURNS[1], key: "Polite."}]
    assert convert({"messages": turns})[-1] == Message("assistant", "Hello", reasoning="Polite.")


def test_a_turn_survives_its_way_through_json() -> None:
    for message in CALLED:
        assert Message.from_json(json.loads(json.dumps(message.to_json()))) == message


FIXTURE_FORMATS = {
    "alpaca_en_demo.json": Format.ALPACA,
    "c4_demo.jsonl": Format.TEXT,
    "dpo_en_demo.json": Format.PREFERENCE,
    "glaive_toolcall_en_demo.json": Format.SHAREGPT,
    "gsm8k/test.jsonl": Format.PROMPT_COMPLETION,
    "gsm8k/train.jsonl": Format.PROMPT_COMPLETION,
    "identity.json": Format.ALPACA,
    "llms-from-scratch/instruction-data.json": Format.ALPACA,
    "llms-from-scratch/instruction-data-with-preference.json": Format.PREFERENCE,
    "llms-from-scratch/instruction-data-with-response.json": Format.ALPACA,
    "llms-from-scratch/the-verdict.txt": Format.TEXT,
    "v1_sft_demo.jsonl": Format.MESSAGES,
    "wiki_demo.txt": Format.TEXT,
}


@pytest.mark.skipif("QLORA_SPACE_FIXTURES" not in os.environ, reason="needs other projects' data")
@pytest.mark.parametrize("name", FIXTURE_FORMATS)
def test_data_of_other_projects_is_detected_without_a_hint(name: str) -> None:
    file = Path(os.environ["QLORA_SPACE_FIXTURES"]) / "datasets" / name
    source = open_source(str(file), allow_local=True)
    _, found = detect_format(source, source.rows(), None, None)
    assert found.format is FIXTURE_FORMATS[name]
    assert any(not isinstance(to_example(row, found), RowProblem) for row in source.rows())


@pytest.mark.parametrize(
    ("values", "mapping"),
    [
        ({"problem": "1+1?", "solution": "One more: 2", "answer": "2"}, ("problem", "solution")),
        ({"human": "Hi", "assistant": "Hello"}, ("human", "assistant")),
        ({"id": "a", "dialogue": "A: Hi", "summary": "A greeting"}, ("dialogue", "summary")),
        ({"inputs": "Hi", "targets": "Hello", "task": "t"}, ("inputs", "targets")),
    ],
)
def test_question_and_answer_are_known_by_many_names(
    values: dict[str, Any], mapping: tuple[str, str]
) -> None:
    found = detect(list(values), [values])
    assert (found.mapping["prompt"], found.mapping["completion"]) == mapping


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"conversation_a": TURNS, "conversation_b": TURNS, "winner": "model_a"}, "better"),
        ({"history": "Hi", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, "better"),
        ({"prompt": "Hi", "response_0": "a", "response_1": "b", "safer_response_id": 0}, "better"),
    ],
)
def test_what_only_a_person_can_decide_is_refused_in_a_sentence(
    values: dict[str, Any], why: str
) -> None:
    with pytest.raises(DatasetError, match=why) as refused:
        detect(list(values), [values])
    assert "column" in refused.value.hint


def test_what_is_about_a_row_is_never_guessed_to_be_its_text() -> None:
    rows = [{"doc_id": "a 1", "page_url": "http x", "chapter": "Once upon a time."}]
    found = detect(list(rows[0]), rows)
    assert (found.format, found.mapping) == (Format.TEXT, {"text": "chapter"})
    with pytest.raises(DatasetError, match="no known format"):
        detect(["id", "data"], [{"id": "7", "data": ["a", "b"]}])
