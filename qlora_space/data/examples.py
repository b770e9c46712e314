"""Turns a row into an example by the detected format. What cannot be used is told, never raised."""

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_space.data.formats import ASSISTANT_NAMES, Detection, parse_turns, role_name
from qlora_space.data.rows import Example, Message, Role, Row, RowProblem
from qlora_space.request import Format

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    **dict.fromkeys(sorted(ASSISTANT_NAMES), "assistant"),
}
_TOOL_ROLES = frozenset(
    ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
)
_CONTENT_KEYS = ("content", "value", "text")


class _Unusable(Exception):
    """Carries the problem of a row up to `to_example`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = RowProblem(code, message)


def to_example(row: Row, detection: Detection) -> Example | RowProblem:
    """The example in this row, or why there is none."""
    if row.problem:
        return row.problem
    parts = {part: row.values.get(column) for part, column in detection.mapping.items()}
    try:
        return _CONVERT[detection.format](parts)
    except _Unusable as error:
        return RowProblem(error.problem.code, f"{row.place}: {error.problem.message}")


def _from_messages(parts: Mapping[str, Any]) -> Example:
    value = parts.get("messages", parts.get("conversations"))
    turns = parse_turns(value)
    if not turns:
        raise _Unusable("bad_row", "the conversation is empty or not a list of turns.")
    messages = [_message(turn) for turn in turns]
    return _conversation(_with_system(parts, messages))


def _from_alpaca(parts: Mapping[str, Any]) -> Example:
    pieces = [_text(parts.get("instruction"), "instruction"), _text(parts.get("input"), "input")]
    prompt = "\n\n".join(piece for piece in pieces if piece.strip())
    messages = _with_system(parts, [*_history(parts.get("history")), Message("user", prompt)])
    return _conversation([*messages, Message("assistant", _text(parts.get("output"), "output"))])


def _from_prompt_completion(parts: Mapping[str, Any]) -> Example:
    prompt = _side(parts.get("prompt"), "prompt", "user")
    completion = _side(parts.get("completion"), "completion", "assistant")
    # Preference data often repeats the prompt in its answers: those are whole conversations.
    is_whole = completion[0].role != "assistant"
    return _conversation(_with_system(parts, completion if is_whole else [*prompt, *completion]))


def _from_text(parts: Mapping[str, Any]) -> Example:
    text = _text(parts.get("text"), "text")
    if not text.strip():
        raise _Unusable("empty_answer", "the text is empty.")
    return text


def _side(value: Any, name: str, role: Role) -> list[Message]:
    turns = parse_turns(value) if not isinstance(value, str) else []
    if turns:
        return [_message(turn) for turn in turns]
    return [Message(role, _text(value, name))]


def _history(value: Any) -> list[Message]:
    """Earlier turns as alpaca has them: [[question, answer], ...]."""
    messages: list[Message] = []
    for pair in value or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _Unusable("bad_row", "history is not a list of [question, answer] pairs.")
        messages.append(Message("user", _text(pair[0], "history")))
        messages.append(Message("assistant", _text(pair[1], "history")))
    return messages


def _with_system(parts: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = _text(parts.get("system"), "system")
    has_system = bool(messages) and messages[0].role == "system"
    return messages if has_system or not system.strip() else [Message("system", system), *messages]


def _message(turn: Mapping[str, Any]) -> Message:
    name = role_name(turn)
    if name in _TOOL_ROLES or turn.get("tool_calls"):
        raise _Unusable("tool_turn", "calls a tool, which cannot be trained on yet.")
    role = _ROLES.get(name)
    if role is None:
        raise _Unusable("bad_row", f"has a turn by {name[:40]!r}, which is no known role.")
    content = next((turn[key] for key in _CONTENT_KEYS if turn.get(key) is not None), "")
    return Message(role, _content(content))


def _content(value: Any) -> str:
    """Text, or a list of text blocks; images and sounds are refused."""
    if not isinstance(value, list | tuple):
        return _text(value, "content")
    texts: list[str] = []
    for block in value:
        text = block if isinstance(block, str) else None
        if isinstance(block, dict) and block.get("type", "text") == "text":
            text = block.get("text") or block.get("value") or ""
        if not isinstance(text, str):
            raise _Unusable("not_text", "has a turn with something that is not text.")
        texts.append(text)
    return "".join(texts)


def _text(value: Any, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unusable("bad_row", f"{name} is a {type(value).__name__}, not text.")
    return str(value)


def _conversation(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Ends in an answer; what comes after the last answer teaches nothing and is left out."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise _Unusable("empty_answer", "has no answer.")
    kept = tuple(message for message in messages[: answers[-1] + 1] if _says_something(message))
    first = next((message.role for message in kept if message.role != "system"), None)
    if any(not messages[index].content.strip() for index in answers):
        raise _Unusable("empty_answer", "has an empty answer.")
    if any(message.role == "system" for message in kept[1:]):
        raise _Unusable("role_order", "has a system turn that is not the first.")
    if first != "user":
        raise _Unusable("role_order", "begins with an answer instead of a question.")
    if any(not m.content.strip() for m in kept):
        raise _Unusable("empty_prompt", "has an empty question.")
    return kept


def _says_something(message: Message) -> bool:
    return message.role != "system" or bool(message.content.strip())


_CONVERT = {
    Format.MESSAGES: _from_messages,
    Format.SHAREGPT: _from_messages,
    Format.ALPACA: _from_alpaca,
    Format.PROMPT_COMPLETION: _from_prompt_completion,
    Format.TEXT: _from_text,
}
