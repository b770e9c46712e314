"""Converts a row to an example by the detected format. What cannot be used is returned as a RowProblem."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from qlora_space.core.options import Format
from qlora_space.data.formats.choices import with_choices
from qlora_space.data.formats.columns import value_at
from qlora_space.data.formats.content import parse_content, text_of
from qlora_space.data.formats.detect import Detection
from qlora_space.data.formats.literals import parse_literal
from qlora_space.data.formats.marks import parse_mark
from qlora_space.data.formats.media import is_media_column, refuse_placeholders
from qlora_space.data.formats.schema_nulls import without_schema_nulls
from qlora_space.data.formats.tool_calls import is_calls, parse_tools
from qlora_space.data.formats.turns import (
    first_answer,
    is_answer,
    parse_dialogue,
    parse_turns,
    to_messages,
    turns_of_text_pairs,
)
from qlora_space.data.messages import (
    Example,
    Labelled,
    Message,
    Messages,
    Preference,
    Role,
    TypedExample,
)
from qlora_space.data.rows import Row, RowProblem, Unusable

Parts = Mapping[str, Any]
_YES, _NO = ("true", "1", "yes", "desirable"), ("false", "0", "no", "undesirable")


def to_example(row: Row, detection: Detection) -> TypedExample | RowProblem:
    """What this row holds, or why it cannot be used."""
    if row.problem:
        return row.problem
    try:
        return _CONVERT[detection.format](_parts(row, detection))
    except Unusable as error:
        return RowProblem(error.problem.code, f"{row.location}: {error.problem.message}")


def _parts(row: Row, detection: Detection) -> Parts:
    """The row's cells by the part that they play. Raises Unusable for a row about a picture or a sound."""
    values: Mapping[str, Any] = row.values
    mapping = detection.mapping
    if row.has_shared_schema:
        values = without_schema_nulls(values, value_at(values, mapping.get("tools", "")))
    parts = {part: value_at(values, column) for part, column in mapping.items()}
    parts["instruction_before"] = detection.instruction
    _refuse_untrained(parts.get("weight"), detection.format)
    if detection.format is not Format.TEXT:
        _refuse_media(values, set(mapping.values()), parts)
    return parts


def _refuse_untrained(mark: Any, format: Format) -> None:
    """A list has a mark for each turn of a conversation."""
    is_list = isinstance(mark, list | tuple)
    if is_list and format in (Format.MESSAGES, Format.SHAREGPT):
        return
    if is_list:
        raise Unusable("unclear_weight", "has a list of weights, but is no list of turns.")
    if parse_mark(mark, "weight of the row") is False:
        raise Unusable("not_trained", "the row is marked as not to be learned.")


def _refuse_media(values: Mapping[str, Any], mapped: set[str], parts: Parts) -> None:
    """Without its picture, a question has no answer."""
    for column, cell in values.items():
        if column not in mapped and is_media_column(column, cell):
            raise Unusable(
                "not_text", f"the column “{column[:60]}” holds an image, audio or video."
            )
    for name in ("prompt", "instruction", "input"):
        if isinstance(parts.get(name), str):
            refuse_placeholders(parts[name])


def to_trained(example: TypedExample, location: str) -> Example | RowProblem:
    """What supervised training takes of an example: the chosen of two answers, a labelled one if desirable."""
    if isinstance(example, Preference):
        return example.prompt + example.chosen
    if isinstance(example, Labelled):
        if not example.label:
            return RowProblem(
                "unwanted_answer", f"{location}: the answer is labelled as undesirable."
            )
        return example.prompt + example.completion
    return example


def _from_messages(parts: Parts) -> Messages:
    value = parts.get("messages", parts.get("conversations"))
    turns = parse_turns(value) or turns_of_text_pairs(value)
    if not turns:
        raise Unusable("bad_row", "the conversation is empty or not a list of turns.")
    messages = to_messages(_with_marks(turns, parts.get("weight")))
    return _conversation(_with_system(parts, messages))


def _with_marks(turns: list[dict[str, Any]], marks: Any) -> list[dict[str, Any]]:
    """With the marks that the row has in a list: one for each turn, or one for each answer."""
    if not isinstance(marks, list | tuple):
        return turns
    answers = [index for index, turn in enumerate(turns) if is_answer(turn)]
    marked = answers if len(marks) == len(answers) else list(range(len(turns)))
    if len(marks) != len(marked):
        raise Unusable("unclear_weight", f"has {len(marks)} weights for {len(turns)} turns.")
    of_turn = dict(zip(marked, marks, strict=True))
    return [{**turn, "weight": of_turn.get(index)} for index, turn in enumerate(turns)]


def _from_alpaca(parts: Parts) -> Messages:
    prompt = [*_history(parts.get("history")), Message("user", _instruction(parts, "instruction"))]
    answer = _with_reasoning(parts, Message("assistant", text_of(parts.get("output"), "output")))
    return _conversation([*_with_system(parts, prompt), answer])


def _from_prompt_completion(parts: Parts) -> Messages:
    if isinstance(parts.get("choices"), list | tuple | dict):
        parts = with_choices(parts)
    prompt = _as_context(_side(parts.get("prompt"), "prompt", "user"))
    if len(prompt) == 1 and isinstance(parts.get("prompt"), str):
        texts = (parts.get("instruction_before"), _instruction(parts, "prompt"))
        prompt = [Message("user", "\n\n".join(filter(None, texts)))]
    prompt = [*_history(parts.get("history")), *prompt]
    *before, answer = _answer(parts)
    completion = [*before, _with_reasoning(parts, answer)]
    return _conversation(_with_system(parts, _whole(prompt, completion)))


def _answer(parts: Parts) -> list[Message]:
    value = parts.get("completion")
    if parts.get("tools") and is_calls(value):
        return to_messages([{"from": "function_call", "value": value}])
    several = first_answer(value)
    return _side(value if several is None else several, "completion", "assistant")


def _with_reasoning(parts: Parts, answer: Message) -> Message:
    """With the reasoning from a column of its own."""
    reasoning = text_of(parts.get("reasoning"), "reasoning")
    if answer.role != "assistant" or answer.reasoning or not reasoning.strip():
        return answer
    return replace(answer, reasoning=reasoning)


def _from_preference(parts: Parts) -> Preference:
    value = parts.get("prompt")
    prompt = _side(value, "prompt", "user") if isinstance(value, list | dict) else []
    if not prompt and (question := _instruction(parts, "prompt")).strip():
        prompt = [Message("user", question)]
    chosen, rejected = (
        _conversation(_with_system(parts, _whole(prompt, side)))
        for side in (
            _side(parts.get("chosen"), "chosen", "assistant"),
            _as_trained(_side(parts.get("rejected"), "rejected", "assistant")),
        )
    )
    # The prompt is what both begin with: usually all but the last answers.
    shared = 0
    while _as_trained(chosen[shared : shared + 1]) == list(rejected[shared : shared + 1]) != []:
        shared += 1
    if shared in (len(chosen), len(rejected)):
        raise Unusable("same_answers", "chosen and rejected are the same.")
    prompt = _as_context(chosen[:shared])
    return Preference(tuple(prompt), chosen[shared:], rejected[shared:])


def _from_kto(parts: Parts) -> Labelled:
    label = _label(parts.get("label"))
    prompt = _side(parts.get("prompt"), "prompt", "user") if parts.get("prompt") else []
    completion = _side(parts.get("completion"), "completion", "assistant")
    whole = _conversation(_with_system(parts, _whole(prompt, completion)))
    return Labelled(tuple(_as_context(whole[:-1])), whole[-1:], label)


def _from_text(parts: Parts) -> str:
    text = text_of(parts.get("text"), "text")
    if not text.strip():
        raise Unusable("empty_answer", "the text is empty.")
    return text


def _turns(value: Any) -> list[Message]:
    return to_messages(parse_turns(value))


def _side(value: Any, name: str, role: Role) -> list[Message]:
    """Prompt or completion: turns, or a text that is one turn of `role`."""
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]  # OpenAI: {"input": {"messages": [...]}}
    if not isinstance(value, str):
        turns = _turns(value)
        return turns or [Message(role, text_of(value, name))]
    return parse_dialogue(value) or [Message(role, value)]


def _as_context(messages: Sequence[Message]) -> list[Message]:
    """Answers in a prompt are what the answer builds on; they are not learned, as in trl."""
    return [replace(m, is_trained=False) if m.role == "assistant" else m for m in messages]


def _as_trained(messages: Sequence[Message]) -> list[Message]:
    """Whatever their marks: what is rejected is not learned in any case."""
    return [replace(m, is_trained=True) for m in messages]


def _whole(prompt: list[Message], completion: list[Message]) -> list[Message]:
    """Preference data often repeats the prompt in its answers: these are whole conversations."""
    return completion if completion[0].role != "assistant" else [*prompt, *completion]


def _instruction(parts: Parts, name: str) -> str:
    pieces = [text_of(parts.get(name), name), text_of(parts.get("input"), "input")]
    return "\n\n".join(piece for piece in pieces if piece.strip())


def _history(value: Any) -> list[Message]:
    """Earlier turns: [[question, answer], ...] as alpaca has them, or turns of any spelling."""
    if isinstance(value, str) and value.strip():
        value = _list_in(value)
    if turns := parse_turns(value):
        return to_messages(turns)
    messages: list[Message] = []
    if value and not isinstance(value, list | tuple):
        raise Unusable("bad_row", "history is not a list of [question, answer] pairs.")
    for pair in value or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable("bad_row", "history is not a list of [question, answer] pairs.")
        messages.append(Message("user", text_of(pair[0], "history")))
        messages.append(Message("assistant", text_of(pair[1], "history")))
    return messages


def _list_in(text: str) -> Any:
    try:
        return parse_literal(text)
    except ValueError as error:
        raise Unusable("bad_row", "history is a text, not a list of turns.") from error


def _label(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _YES + _NO:
        raise Unusable("bad_row", f"label is {str(value)[:40]!r}, not true or false.")
    return word in _YES


def _with_system(parts: Parts, messages: list[Message]) -> list[Message]:
    """After the tools and the system turn that the row has in columns of their own."""
    value = parts.get("system")
    turns = parse_turns(value)  # Gemini: {"role": "system", "parts": [...]}
    system = to_messages(turns)[0].content if turns else parse_content(value).text
    has_system = bool(messages) and messages[0].role == "system"
    if not has_system and system.strip():
        messages = [Message("system", system), *messages]
    return [*parse_tools(parts.get("tools")), *messages]


def _conversation(messages: Sequence[Message]) -> Messages:
    """Up to the last answer that is learned: what comes after it trains nothing.

    Raises Unusable for a bad order of turns, and for questions about pictures and sounds.
    """
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise Unusable("empty_answer", "has no answer.")
    answers = answers[: _number_until_last_trained([messages[index] for index in answers])]
    kept = tuple(message for message in messages[: answers[-1] + 1] if _has_content(message))
    kept = _with_systems_joined(kept)
    turns = [message for message in kept if message.role != "tools"]
    first = next((message.role for message in turns if message.role != "system"), None)
    if any(not messages[index].as_text.strip() for index in answers):
        raise Unusable("empty_answer", "has an empty answer.")
    if any(message.role == "system" for message in turns[1:]):
        raise Unusable("role_order", "has a system turn that is not the first.")
    if first != "user":
        raise Unusable("role_order", f"begins with {_BEGINS[first]} instead of a question.")
    for message in kept:
        if message.role == "user" and not message.content.strip():
            raise Unusable("empty_prompt", "has an empty question.")
        if message.role == "user":
            refuse_placeholders(message.content)
    return kept


def _number_until_last_trained(answers: Sequence[Message]) -> int:
    """Raises Unusable if none of the answers is to be learned."""
    trained = [number for number, answer in enumerate(answers, start=1) if answer.is_trained]
    if not trained:
        raise Unusable("not_trained", "has no answer that is to be learned.")
    return trained[-1]


def _with_systems_joined(messages: Messages) -> Messages:
    """A system turn and a developer turn at the beginning are one."""
    count = sum(1 for _ in takewhile(_is_before_the_question, messages))
    first = [message for message in messages[:count] if message.role == "system"]
    if len(first) < 2:
        return messages
    system = Message("system", "\n\n".join(message.content for message in first))
    tools = [message for message in messages[:count] if message.role == "tools"]
    return (*tools, system, *messages[count:])


def _is_before_the_question(message: Message) -> bool:
    return message.role in ("tools", "system")


_BEGINS = {"assistant": "an answer", "tool": "the result of a tool", None: "nothing"}


def _has_content(message: Message) -> bool:
    return message.role != "system" or bool(message.content.strip())


_CONVERT = {
    Format.MESSAGES: _from_messages,
    Format.SHAREGPT: _from_messages,
    Format.ALPACA: _from_alpaca,
    Format.PREFERENCE: _from_preference,
    Format.KTO: _from_kto,
    Format.PROMPT_COMPLETION: _from_prompt_completion,
    Format.TEXT: _from_text,
}
