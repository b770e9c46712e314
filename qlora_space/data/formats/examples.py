"""Turns a row into an example by the detected format. What cannot be used is told, never raised."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlora_space.core.options import Format
from qlora_space.data.formats.detect import Detection
from qlora_space.data.formats.multiple_choice import choose
from qlora_space.data.formats.turns import (
    Unusable,
    first_answer,
    is_calls,
    parse_dialogue,
    parse_turns,
    text_of,
    to_messages,
    tools_message,
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
from qlora_space.data.rows import Row, RowProblem

Parts = Mapping[str, Any]
_YES, _NO = ("true", "1", "yes", "desirable"), ("false", "0", "no", "undesirable")


def to_example(row: Row, detection: Detection) -> TypedExample | RowProblem:
    """What this row holds, or why it cannot be used."""
    if row.problem:
        return row.problem
    parts = {part: row.values.get(column) for part, column in detection.mapping.items()}
    try:
        return _CONVERT[detection.format](parts)
    except Unusable as error:
        return RowProblem(error.problem.code, f"{row.place}: {error.problem.message}")


def to_trained(example: TypedExample, place: str) -> Example | RowProblem:
    """What supervised training learns of an example: of two answers the better, of judged ones the good."""
    if isinstance(example, Preference):
        return example.prompt + example.chosen
    if isinstance(example, Labelled):
        if not example.label:
            return RowProblem("unwanted_answer", f"{place}: the answer is labelled as not wanted.")
        return example.prompt + example.completion
    return example


def _from_messages(parts: Parts) -> Messages:
    turns = _turns(parts.get("messages", parts.get("conversations")))
    if not turns:
        raise Unusable("bad_row", "the conversation is empty or not a list of turns.")
    return _conversation(_with_system(parts, turns))


def _from_alpaca(parts: Parts) -> Messages:
    prompt = [*_history(parts.get("history")), Message("user", _instruction(parts, "instruction"))]
    answer = _reasoned(parts, Message("assistant", text_of(parts.get("output"), "output")))
    return _conversation([*_with_system(parts, prompt), answer])


def _from_prompt_completion(parts: Parts) -> Messages:
    if isinstance(parts.get("choices"), list | tuple | dict):
        parts = choose(parts)
    prompt = _side(parts.get("prompt"), "prompt", "user")
    if len(prompt) == 1 and isinstance(parts.get("prompt"), str):
        prompt = [Message("user", _instruction(parts, "prompt"))]
    *before, answer = _answer(parts)
    completion = [*before, _reasoned(parts, answer)]
    return _conversation(_with_system(parts, _whole(prompt, completion)))


def _answer(parts: Parts) -> list[Message]:
    value = parts.get("completion")
    if parts.get("tools") and is_calls(value):
        return to_messages([{"from": "function_call", "value": value}])
    several = first_answer(value)
    return _side(value if several is None else several, "completion", "assistant")


def _reasoned(parts: Parts, answer: Message) -> Message:
    """With the reasoning of the row's own column."""
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
        _conversation(
            _with_system(parts, _whole(prompt, _side(parts.get(name), name, "assistant")))
        )
        for name in ("chosen", "rejected")
    )
    # The last answers differ, or what comes before them where that differs too.
    shared = 0
    while chosen[shared : shared + 1] == rejected[shared : shared + 1] != ():
        shared += 1
    if shared in (len(chosen), len(rejected)):
        raise Unusable("same_answers", "chosen and rejected are the same.")
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:])


def _from_kto(parts: Parts) -> Labelled:
    label = _label(parts.get("label"))
    prompt = _side(parts.get("prompt"), "prompt", "user") if parts.get("prompt") else []
    completion = _side(parts.get("completion"), "completion", "assistant")
    whole = _conversation(_with_system(parts, _whole(prompt, completion)))
    return Labelled(whole[:-1], whole[-1:], label)


def _from_text(parts: Parts) -> str:
    text = text_of(parts.get("text"), "text")
    if not text.strip():
        raise Unusable("empty_answer", "the text is empty.")
    return text


def _turns(value: Any) -> list[Message]:
    return to_messages(parse_turns(value))


def _side(value: Any, name: str, role: Role) -> list[Message]:
    """One side of a conversation: turns, or a text that is one turn by `role`."""
    if not isinstance(value, str):
        turns = _turns(value)
        return turns or [Message(role, text_of(value, name))]
    return parse_dialogue(value) or [Message(role, value)]


def _whole(prompt: list[Message], completion: list[Message]) -> list[Message]:
    """Preference data often repeats the prompt in its answers: those are whole conversations."""
    return completion if completion[0].role != "assistant" else [*prompt, *completion]


def _instruction(parts: Parts, name: str) -> str:
    pieces = [text_of(parts.get(name), name), text_of(parts.get("input"), "input")]
    return "\n\n".join(piece for piece in pieces if piece.strip())


def _history(value: Any) -> list[Message]:
    """Earlier turns as alpaca has them: [[question, answer], ...]."""
    messages: list[Message] = []
    if value and not isinstance(value, list | tuple):
        raise Unusable("bad_row", "history is not a list of [question, answer] pairs.")
    for pair in value or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unusable("bad_row", "history is not a list of [question, answer] pairs.")
        messages.append(Message("user", text_of(pair[0], "history")))
        messages.append(Message("assistant", text_of(pair[1], "history")))
    return messages


def _label(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in _YES + _NO:
        raise Unusable("bad_row", f"label is {str(value)[:40]!r}, not true or false.")
    return word in _YES


def _with_system(parts: Parts, messages: list[Message]) -> list[Message]:
    """With the tools and the system turn of the row's own columns in front."""
    system = text_of(parts.get("system"), "system")
    has_system = bool(messages) and messages[0].role == "system"
    if not has_system and system.strip():
        messages = [Message("system", system), *messages]
    return [*tools_message(parts.get("tools")), *messages]


def _conversation(messages: Sequence[Message]) -> Messages:
    """Ends in an answer; what comes after the last answer teaches nothing and is left out."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise Unusable("empty_answer", "has no answer.")
    kept = tuple(message for message in messages[: answers[-1] + 1] if _says_something(message))
    turns = [message for message in kept if message.role != "tools"]
    first = next((message.role for message in turns if message.role != "system"), None)
    if any(not messages[index].said.strip() for index in answers):
        raise Unusable("empty_answer", "has an empty answer.")
    if any(message.role == "system" for message in turns[1:]):
        raise Unusable("role_order", "has a system turn that is not the first.")
    if first != "user":
        raise Unusable("role_order", f"begins with {_BEGINS[first]} instead of a question.")
    if any(not m.content.strip() for m in kept if m.role == "user"):
        raise Unusable("empty_prompt", "has an empty question.")
    return kept


_BEGINS = {"assistant": "an answer", "tool": "what a tool gave back", None: "nothing"}


def _says_something(message: Message) -> bool:
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
