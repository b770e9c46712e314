"""Rows are read as their author meant them, or a finding says so: one small file for each kind of layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qlora_space.core.errors import DatasetError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.options import Format
from qlora_space.core.request import parse_request
from qlora_space.data import inspect_dataset
from tests.data.conftest import facts_of, make_tokenizer, write_jsonl

PLACES = ("Ely", "Wells", "Deal", "Rye", "Looe", "Bude", "Hove", "Ryde")
ROWS = range(len(PLACES))
# As Qwen3 does: reasoning is written for the last answer only.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% set parts = m['content'].split('</think>') %}"
    "{% if m['role'] == 'assistant' and loop.last and m.get('reasoning_content') %}"
    "{{ '<think>' + m['reasoning_content'] + '</think>' }}{% endif %}"
    "{{ (m['content'] if loop.last else parts[-1]) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if m['content'] else '' }}{% for c in m.get('tool_calls') or [] %}"
    "{{ '<call>' + c.function.name + (c.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def inspect(tmp_path: Path, base: ModelFacts, base_folder: Path) -> Any:
    def run(dataset: list[dict[str, Any]] | Path, template: str = "", **fields: Any) -> Inspection:
        file = dataset if isinstance(dataset, Path) else write_jsonl(tmp_path / "a.jsonl", dataset)
        request = parse_request({"dataset": str(file), **fields})
        if not template:
            return inspect_dataset(request, base, base_folder, None, allow_local=True)
        folder = tmp_path / "base"
        make_tokenizer(template, eos="<|im_end|>").save_pretrained(folder)
        (folder / "config.json").write_text("{}")
        return inspect_dataset(request, facts_of(folder), folder, None, allow_local=True)

    return run


def each(make: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(place) for place in PLACES]


def trained(found: Inspection) -> str:
    return "".join(t.text for sample in found.samples for t in sample.tokens if t.trained)


def whole(found: Inspection) -> str:
    return "".join(t.text for sample in found.samples for t in sample.tokens)


def codes(found: Inspection) -> dict[str, str]:
    return {problem.code: problem.severity for problem in found.problems}


def turns_of(place: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"What is in {place}?"},
        {"role": "assistant", "content": f"A bridge in {place}."},
    ]


READ: dict[str, Callable[[str], dict[str, Any]]] = {
    "a request to OpenAI": lambda p: {
        "custom_id": p,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": turns_of(p)},
    },
    "Responses": lambda p: {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": f"In {p}?"}]}],
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "SECRET."}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": f"A bridge in {p}."}],
            },
        ],
    },
    "Bedrock": lambda p: {
        "system": [{"text": "Be short."}],
        "messages": [
            {"role": "user", "content": [{"text": f"In {p}?"}]},
            {"role": "assistant", "content": [{"text": f"A bridge in {p}."}]},
        ],
    },
    "Cohere": lambda p: {
        "messages": [
            {"role": "User", "message": f"In {p}?"},
            {"role": "Chatbot", "message": f"A bridge in {p}."},
        ]
    },
    "preferences of OpenAI": lambda p: {
        "input": {"messages": turns_of(p)[:1]},
        "preferred_output": turns_of(p)[1:],
        "non_preferred_output": [{"role": "assistant", "content": "WORSE."}],
    },
    "Python text": lambda p: {"dialog": str(turns_of(p)), "number": "7"},
    "question, answer and history": lambda p: {
        "query": f"And in {p}?",
        "response": f"A bridge in {p}.",
        "history": [["What is a bridge?", "A way over water."]],
    },
    "names of parts within longer names": lambda p: {
        "input_text": f"In {p}?",
        "output_text": f"A bridge in {p}.",
    },
}


@pytest.mark.parametrize("layout", READ)
def test_a_layout_that_people_have_is_read(inspect: Any, layout: str) -> None:
    found = inspect(each(READ[layout]))
    assert found.errors == ()
    assert "A bridge in Ely.<|im_end|>" in trained(found)
    assert not any(word in trained(found) for word in ("WORSE", "role", "SECRET"))


def test_a_system_text_and_a_history_of_their_own_are_read(inspect: Any) -> None:
    rows = each(lambda p: {"systemInstruction": {"parts": [{"text": f"Be short in {p}."}]},
                           "contents": [{"role": "user", "parts": [{"text": "Hi"}]},
                                        {"role": "model", "parts": [{"text": "Yes."}]}]})  # fmt: skip
    assert "Be short in Ely." in whole(inspect(rows))
    assert "A way over water." in whole(inspect(each(READ["question, answer and history"])))


def test_an_analysis_is_reasoning_and_no_answer(inspect: Any) -> None:
    rows = each(lambda p: {"messages": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": f"In {p}?"},
        {"role": "assistant", "content": "HIDDEN", "channel": "analysis"},
        {"role": "assistant", "content": f"A bridge in {p}.", "channel": "final"},
    ]})  # fmt: skip
    found = inspect(rows)
    assert "HIDDEN" not in trained(found)
    assert codes(found)["drops_reasoning"] == "warning"
    assert "<think>HIDDEN</think>A bridge in Ely." in trained(inspect(rows, FORGETFUL))


def test_tool_blocks_of_anthropic_are_calls_and_results(inspect: Any) -> None:
    rows = each(lambda p: {
        "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {}}}],
        "messages": [
            {"role": "user", "content": f"In {p}?"},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": p}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "a bridge"}]},
            {"role": "assistant", "content": f"A bridge in {p}."},
        ],
    })  # fmt: skip
    found = inspect(rows, TOOLS)
    assert 'I look.<call>look{"at": "Ely"}</call><|im_end|>' in trained(found)
    assert "a bridge" not in trained(found)
    assert "<|im_start|>tool\na bridge" in whole(found)


GUESSED: dict[str, Callable[[str], dict[str, Any]]] = {
    "two texts": lambda p: {"foo": f"In {p}?", "bar": f"A bridge in {p}."},
    "one text": lambda p: {"id": p, "foo": f"A bridge in {p}."},
    "a prompt beside text": lambda p: {"prompt": f"In {p}?", "text": f"A bridge in {p}."},
    "lists beside text": lambda p: {"text": f"A bridge in {p}.", "spans": [{"start": 1}]},
    "lists written as text beside text": lambda p: {"text": f"In {p}.", "spans": f"['{p}']"},
    "a category": lambda p: {"text": f"A bridge in {p}.", "category": "ab"[len(p) % 2]},
    "two languages": lambda p: {"translation": {"en": f"In {p}.", "de": f"Zu {p}."}},
    "names in part": lambda p: {
        "sql_prompt": f"In {p}?",
        "sql_context": "x y",
        "sql": f"SELECT {p}",
    },
    "several conversations": lambda p: {
        "bad_talk": turns_of(p),
        "good_talk": [turns_of(p)[0], {"role": "assistant", "content": "Other."}],
    },
    "JSON as text": lambda p: {"text": json.dumps({"question": p, "passage": "x", "answer": "y"})},
    "a table as text": lambda p: {"text": f"In {p}\tZu {p}\tby a friend"},
    "conversations beside more": lambda p: {"chosen": turns_of(p), "score": 1},
}


@pytest.mark.parametrize("kind", GUESSED)
def test_a_guess_stops_until_its_own_button_is_pressed(inspect: Any, kind: str) -> None:
    found = inspect(each(GUESSED[kind]))
    (error,) = found.errors
    assert error.code == "guessed_columns"
    assert error.change is not None
    confirmed = inspect(each(GUESSED[kind]), **{error.change.field: error.change.value})
    assert confirmed.errors == ()
    assert confirmed.mapping.items() >= found.mapping.items()
    assert trained(confirmed) == trained(found)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"category": "a", "turns": ["What?", "And?"]}, "no known format"),
        ({"title": "A title", "paragraphs": [{"context": "x"}]}, "no known format"),
        ({"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [1, 2]}, "token ids"),
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "'narrator', which is no known role",
        ),
        ({"body": {"messages": [{"role": "user", "content": "x"}]}}, "without answers"),
        ({"messages": "[{'role': 'user' 'content': 'x'}]"}, "neither JSON nor Python"),
        ({"messages": "[{'role': 'user', 'content': open('x')}]"}, "neither JSON nor Python"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_cause(
    inspect: Any, row: dict[str, Any], why: str
) -> None:
    found = inspect([row] * 3)
    assert why in found.errors[0].message
    assert found.samples == ()


MEDIA: dict[str, Callable[[str], dict[str, Any]]] = {
    "placeholder": lambda p: {"messages": [
        {"role": "user", "content": f"<image>What is in {p}?"}, turns_of(p)[1]]},
    "placeholder at the end": lambda p: {"prompt": f"What is in {p}?\n<image>", "completion": "x"},
    "numbered": lambda p: {"prompt": f"<|image_1|>\nWhat is in {p}?", "completion": "x"},
    "video": lambda p: {"conversations": [
        {"from": "human", "value": f"<video>\nWho is in {p}?"}, {"from": "gpt", "value": "x"}]},
    "column of files": lambda p: {"question": f"In {p}?", "answer": "x", "image": f"{p}.png"},
    "column of audio": lambda p: {"question": f"In {p}?", "answer": "x", "audio_path": f"a/{p}.wav"},
    "column of bytes": lambda p: {
        "question": f"In {p}?", "answer": "x", "figure": {"bytes": "iVBOR", "path": None}},
    "beside a turn": lambda p: {"messages": [{**turns_of(p)[0], "images": ["a"]}, turns_of(p)[1]]},
    "part": lambda p: {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        turns_of(p)[1]]},
    "part of Gemini": lambda p: {"contents": [
        {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png"}}, {"text": "x"}]},
        {"role": "model", "parts": [{"text": "x"}]}]},
}  # fmt: skip


@pytest.mark.parametrize("kind", MEDIA)
def test_an_answer_about_a_picture_or_a_sound_is_not_learned_blind(inspect: Any, kind: str) -> None:
    good = each(lambda p: {**turns_row(p, MEDIA[kind](p))})
    found = inspect([*each(MEDIA[kind]), *good])
    (problem,) = [p for p in found.problems if p.code == "not_text"]
    assert problem.rows == len(PLACES)
    assert problem.drops


def turns_row(place: str, like: dict[str, Any]) -> dict[str, Any]:
    """A row of the same columns without any picture."""
    if "messages" in like:
        return {"messages": turns_of(place)}
    if "conversations" in like:
        pair = [{"from": "human", "value": place}, {"from": "gpt", "value": "x"}]
        return {"conversations": pair}
    if "contents" in like:
        return {"contents": [{"role": "user", "parts": [{"text": place}]},
                             {"role": "model", "parts": [{"text": "x"}]}]}  # fmt: skip
    return {key: place for key in like if key in ("prompt", "completion", "question", "answer")}


@pytest.mark.parametrize(
    "text",
    [
        'Write <img src="a.png"> into the page.',
        "<video> tags play films: how do I use one?",
        "What does the element <image> of SVG do?",
        "I see <b>bold</b> and <audio controls>.",
    ],
)
def test_a_question_about_html_is_text(inspect: Any, text: str) -> None:
    found = inspect(each(lambda p: {"prompt": f"{text} {p}", "completion": "x"}))
    assert "not_text" not in codes(found)


def test_nulls_of_a_shared_schema_are_no_arguments(inspect: Any, tmp_path: Path) -> None:
    def row(name: str, **arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"messages": [{"role": "user", "content": "Do it.", "tool_calls": []}, answer]}

    def tool(name: str, *arguments: str) -> dict[str, Any]:
        schema = {
            "properties": {key: {"type": "string"} for key in arguments},
            "required": arguments,
        }
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    tools = json.dumps([tool("sow", "seed"), tool("water", "bed", "litres")])
    rows = [row("sow", seed="rose"), row("water", bed="one", litres=None)]
    table = pa.Table.from_pylist([{**each, "tools": tools} for each in rows])
    pq.write_table(table, tmp_path / "a.parquet")
    found = inspect(tmp_path / "a.parquet", TOOLS)
    assert '<call>sow{"seed": "rose"}</call>' in trained(found)
    # An argument that the function requires is null because the author wrote so.
    assert '<call>water{"bed": "one", "litres": null}</call>' in trained(found)
    assert codes(found)["schema_nulls"] == "info"
    write_jsonl(tmp_path / "a.jsonl", [{**row("sow", seed=None), "tools": tools}])
    assert '{"seed": null}' in trained(inspect(tmp_path / "a.jsonl", TOOLS))


@pytest.mark.parametrize(
    ("more", "role"),
    [
        ({"follow_up_question": "How tall?"}, "a question"),
        ({"previous_turns": ["What?"]}, "earlier turns"),
        ({"chain_of_thought": {"first": "water"}}, "reasoning"),
        ({"scratchpad": "First, water."}, "reasoning"),
        ({"image_id": 3}, "images, audio or video"),
        ({"sentiment": "good"}, "a label"),
    ],
)
def test_a_known_part_that_is_not_read_is_reported(
    inspect: Any, more: dict[str, Any], role: str
) -> None:
    rows = each(lambda p: {"question": f"In {p}?", "answer": f"A bridge in {p}.", **more})
    found = inspect(rows)
    (problem,) = [p for p in found.problems if p.code == "unread_column"]
    assert role in problem.message
    assert next(iter(more)) in problem.message


def test_a_column_that_is_contained_in_what_is_read_is_not_reported(inspect: Any) -> None:
    rows = each(lambda p: {"prompt": f"What is in {p}?", "messages": turns_of(p)})
    assert "unread_column" not in codes(inspect(rows))


@pytest.mark.parametrize(
    ("more", "role"),
    [
        ({"contexts": ["one", "two"]}, "what a question is about"),
        ({"choice0": "a ferry", "choice1": "a road"}, "a choice"),
        ({"is_safe": False}, "a judgement of the answer"),
        ({"reward": 0.5}, "a judgement of the answer"),
    ],
)
def test_what_says_more_about_an_answer_is_reported(
    inspect: Any, more: dict[str, Any], role: str
) -> None:
    rows = each(lambda p: {"question": f"In {p}?", "answer": f"A bridge in {p}.", **more})
    (problem,) = [p for p in inspect(rows).problems if p.code == "unread_column"]
    assert role in problem.message


@pytest.mark.parametrize(
    "text",
    [
        "[INST] In {} ? [/INST] A bridge.",
        "### Human: In {}?### Assistant: A bridge.",
        "<|im_start|>user\nIn {}?<|im_end|>",
    ],
)
def test_chats_that_are_written_out_as_text_are_reported(inspect: Any, text: str) -> None:
    assert codes(inspect(each(lambda p: {"text": text.format(p)})))["formatted_chat"] == "warning"
    assert "formatted_chat" not in codes(inspect(each(lambda p: {"text": f"A tale of {p}."})))


def test_rows_of_other_weights_stop_until_all_are_to_count_alike(inspect: Any) -> None:
    rows = [
        {"question": f"In {p}?", "answer": f"A bridge in {p}.", "sample_weight": 1 + i / 2}
        for i, p in enumerate(PLACES)
    ]
    (error,) = inspect(rows).errors
    assert error.code == "row_weights"
    assert error.change is not None
    alike = inspect(rows, columns=error.change.value)
    assert alike.errors == ()
    assert "a weight of the row" in str(alike.problems)


def test_true_and_false_beside_an_answer_is_a_judgement(inspect: Any) -> None:
    rows = [
        {"instruction": f"In {p}?", "output": f"A bridge in {p}.", "passes": i % 2 == 0}
        for i, p in enumerate(PLACES)
    ]
    assert "a judgement of the answer" in str(inspect(rows).problems)
    judged = inspect([{**row, "tag": row.pop("passes")} for row in rows])
    assert judged.format is Format.KTO
    assert codes(judged)["unwanted_answer"] == "info"


def test_a_call_and_its_result_in_one_turn_are_two(inspect: Any) -> None:
    rows = each(lambda p: {
        "tools": [{"name": "look", "parameters": {"type": "object", "properties": {}}}],
        "conversations": [
            {"role": "user", "content": f"In {p}?"},
            {"role": "tool", "name": "look", "parameters": {"at": p}, "observation": "a bridge"},
            {"role": "assistant", "content": f"A bridge in {p}."},
        ],
    })  # fmt: skip
    found = inspect(rows, TOOLS)
    assert '<call>look{"at": "Ely"}</call>' in trained(found)
    assert "<|im_start|>tool\na bridge" in whole(found)


def test_arguments_that_were_encoded_twice_are_an_object(inspect: Any) -> None:
    arguments = json.dumps(json.dumps({"at": "Ely"}))
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "tool_calls": [call]}]
    tool = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    found = inspect([{"messages": turns, "tools": [tool]}], TOOLS)
    assert '<call>look{"at": "Ely"}</call>' in trained(found)


def test_a_turn_without_a_text_is_refused_by_the_keys_that_it_has(inspect: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "answer": "Hello"}]
    assert "'answer'" in inspect([{"messages": turns}]).errors[0].message


def test_a_conversation_that_is_named_rejected_is_not_learned(inspect: Any) -> None:
    worse = {"role": "assistant", "content": "WORSE."}
    rows = each(
        lambda p: {"rejected_messages": [turns_of(p)[0], worse], "chosen_messages": turns_of(p)}
    )
    found = inspect(rows)
    assert found.format is Format.PREFERENCE
    assert "WORSE" not in trained(found)


def test_an_object_with_more_than_question_and_answer_is_no_turn(inspect: Any) -> None:
    pair = {"question": "Where?", "answer": "Rome", "context": "Anna lives in Rome."}
    assert inspect([{"conversations": [pair]}] * 3).errors
    lone = {"question": "Where?", "answer": "Rome", "id": "x", "weight": 1}
    assert "Rome" in trained(inspect([{"conversations": [lone]}] * 3))


def test_calls_within_a_part_that_holds_json_are_read(inspect: Any) -> None:
    call = {"type": "tool_call", "value": '{"name": "look", "arguments": {"at": "Ely"}}'}
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": [call, call]}]
    tool = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    found = inspect([{"messages": turns, "tools": [tool]}], TOOLS)
    assert trained(found).count('<call>look{"at": "Ely"}</call>') == 2


def test_one_conversation_in_a_json_file_is_one_row(inspect: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"messages": turns_of("Ely")}))
    assert "A bridge in Ely." in trained(inspect(tmp_path / "a.json"))


def test_a_question_that_never_changes_is_a_guess(inspect: Any) -> None:
    rows = [{"prompt": "Go on.", "completion": f"Tale {i}."} for i in range(12)]
    (error,) = inspect(rows).errors
    assert "same in every row" in error.message


def test_rows_that_answer_others_stop_until_each_is_to_stand_alone(inspect: Any) -> None:
    rows = [
        {
            "id": f"r{i}",
            "parent_id": f"r{i - 1}" if i else None,
            "question": f"In {p}?",
            "answer": "x",
        }
        for i, p in enumerate(PLACES)
    ]
    (error,) = inspect(rows).errors
    assert error.code == "linked_rows"
    assert error.change is not None
    alone = inspect(rows, columns=error.change.value)
    assert alone.errors == ()
    assert codes(alone)["linked_rows_alone"] == "warning"


def test_a_label_is_learned_with_an_instruction_that_can_be_changed(inspect: Any) -> None:
    rows = each(lambda p: {"text": f"The bridge of {p}.", "label": len(p) % 2})
    found = inspect(rows)
    assert found.format is Format.PROMPT_COMPLETION
    assert "Give the label of this text. It is one of: 0, 1.\n\nThe bridge of Ely." in whole(found)
    assert trained(inspect(rows)).startswith("1<|im_end|>")
    assert "Good or bad?\n\nThe bridge" in whole(inspect(rows, instruction="Good or bad?"))
    assert "Give the label" not in whole(inspect(rows, instruction="none"))


def test_reasoning_of_earlier_answers_that_the_template_drops_is_reported(inspect: Any) -> None:
    beside = each(lambda p: {"messages": [
        turns_of(p)[0], {**turns_of(p)[1], "reasoning_content": "EARLIER"}, *turns_of(p)]})  # fmt: skip
    inline = each(lambda p: {"messages": [
        turns_of(p)[0], {"role": "assistant", "content": f"<think>EARLIER</think>{p}"},
        *turns_of(p)]})  # fmt: skip
    for rows in (beside, inline):
        found = inspect(rows, FORGETFUL)
        assert "EARLIER" not in trained(found)
        assert codes(found)["earlier_reasoning"] == "warning"
    assert "earlier_reasoning" not in codes(inspect(inline))  # ChatML writes it as text


def test_reasoning_that_never_begins_is_reported(inspect: Any) -> None:
    rows = each(
        lambda p: {"prompt": f"In {p}?", "completion": f"I recall.</think>A bridge in {p}."}
    )
    assert codes(inspect(rows))["unopened_reasoning"] == "warning"


def test_a_mapping_by_path_that_does_not_exist_is_named() -> None:
    from qlora_space.data import detect

    with pytest.raises(DatasetError, match=r"no column 'body\.mesages'"):
        detect(
            ["body"], [{"body": {"messages": turns_of("Ely")}}], None, {"messages": "body.mesages"}
        )


def test_every_button_mends_what_it_stands_beside(inspect: Any) -> None:
    """After it, the finding is gone."""
    long = "a b " * 3000
    kinds = [
        *(each(make) for make in GUESSED.values()),
        [*each(READ["Python text"]), *each(READ["Python text"])],
        [
            *each(lambda p: {"prompt": p, "completion": f"x {p}"}),
            {"prompt": "y", "completion": long},
        ],
        each(lambda p: {"prompt": p, "completion": long + p}),
        each(lambda p: {"prompt": long[:800] + p, "completion": "x"}),
    ]
    pressed = 0
    for rows in kinds:
        for limits in ({}, {"max_length": 32}, {"num_train_epochs": 50}):
            for problem in inspect(rows, **limits).problems:
                if problem.change is None:
                    continue
                pressed += 1
                change = {problem.change.field: problem.change.value}
                after = inspect(rows, **{**limits, **change})
                assert problem.code not in codes(after), (problem, after.problems)
    assert pressed > 20


def test_whole_trees_of_messages_are_joined_and_said_to_be(inspect: Any) -> None:
    rows = [
        {
            "message_id": f"{i}{who}",
            "parent_id": None if who == "q" else f"{i}q",
            "role": role,
            "text": text,
        }
        for i, p in enumerate(PLACES)
        for who, role, text in (("q", "prompter", f"In {p}?"), ("a", "assistant", f"Yes, {p}."))
    ]
    found = inspect(rows)
    assert found.errors == ()
    assert codes(found)["joined_messages"] == "info"
    assert found.num_rows == len(PLACES)
    assert found.mapping == {"messages": "messages"}
