"""Parses the turns of a conversation, in any of the usual spellings, into Messages."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlora_space.data.messages import Message, Role, ToolCall
from qlora_space.data.rows import RowProblem

ASSISTANT_NAMES = frozenset(("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai"))
_CALL_NAMES = frozenset(("function_call", "tool_call", "function-call", "tool_calls"))
_RESULT_NAMES = frozenset(
    ("tool", "function", "observation", "tool_response", "function_response", "ipython")
)
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    **dict.fromkeys(sorted(ASSISTANT_NAMES | _CALL_NAMES), "assistant"),
    **dict.fromkeys(sorted(_RESULT_NAMES), "tool"),
}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "parts", "message")
# A question and its answer in one object.
_PAIRS = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
)
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_DIALOGUE = re.compile(r"\n\n(Human|Assistant): ?")


class Unusable(Exception):
    """The row cannot be used; `to_example` returns its `problem`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.problem = RowProblem(code, message)


def role_name(turn: Mapping[str, Any]) -> str:
    """The role of a turn as the row spells it, in lower case."""
    return str(next((turn[key] for key in _ROLE_KEYS if turn.get(key)), "")).strip().lower()


def is_answer(turn: Mapping[str, Any]) -> bool:
    return role_name(turn) in ASSISTANT_NAMES | _CALL_NAMES


def parse_turns(value: Any) -> list[dict[str, Any]]:
    """Turns from a list, one turn, JSON text or a dict of columns; [] if it is none of these."""
    if isinstance(value, str):
        if value.lstrip()[:1] not in ("[", "{"):
            return []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, dict):
        value = _turns_in_dict(value)
    if is_pairs(value):
        return [turn for pair in value for turn in _turns_in_pair(pair)]
    is_list = isinstance(value, list | tuple) and bool(value)
    return list(value) if is_list and all(_is_turn(turn) for turn in value) else []


def is_pairs(value: Any) -> bool:
    """[{"input": ..., "output": ...}, ...]: every object is a question and its answer."""
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(_names_in_pair(pair) is not None for pair in value)


def is_calls(value: Any) -> bool:
    """A list of {"name", "arguments"}, also as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip()[:1] == "[" else None
        except (ValueError, RecursionError):
            return False
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(isinstance(x, dict) and {"name", "arguments"} <= set(x) for x in value)


def first_answer(value: Any) -> str | None:
    """The first of several answers, {"text": [...]} or a list of texts; None for anything else."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"] or [""]
    is_texts = isinstance(value, list | tuple) and bool(value)
    return value[0] if is_texts and all(isinstance(text, str) for text in value) else None


def parse_dialogue(text: str) -> list[Message]:
    """'\\n\\nHuman: …\\n\\nAssistant: …' as turns, as old preference data has it; [] for other text."""
    if not text.lstrip("\n").startswith("Human:"):
        return []
    _, *pieces = _DIALOGUE.split("\n\n" + text.lstrip("\n"))
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    turns = [Message(roles[who], text.strip()) for who, text in pairs]
    return turns[:-1] if turns and not turns[-1].content else turns


def to_messages(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The turns as messages, with each call and its result numbered. Raises Unusable."""
    return _with_numbered_calls(_with_calls_joined([_message(turn) for turn in turns]))


def text_of(value: Any, name: str) -> str:
    """A cell as text. Raises Unusable for what is not."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable("bad_row", f"{name} is a {type(value).__name__}, not text.")
    return str(value)


def tools_message(value: Any) -> list[Message]:
    """The functions that may be called, from a column of any of the usual shapes; [] for none."""
    if isinstance(value, str):
        value = _json_in(value, "tools") if value.strip() else None
    if isinstance(value, dict):
        value = [value]
    if not value:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("bad_row", "tools is not a list of functions.")
    tools = [_tool(tool) for tool in value]
    return [Message("tools", json.dumps(tools, ensure_ascii=False, default=str))]


def _turns_in_dict(value: dict[str, Any]) -> list[Any]:
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if _is_turn(value) and len(lists) == len(value) and len({len(x) for x in lists}) == 1:
        return [dict(zip(value, turn, strict=True)) for turn in zip(*lists, strict=True)]
    return [value]


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in _ROLE_KEYS)


def _names_in_pair(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or _is_turn(value):
        return None
    return next((pair for pair in _PAIRS if pair[0] in value and pair[1] in value), None)


def _turns_in_pair(pair: dict[str, Any]) -> list[dict[str, Any]]:
    question, answer = _names_in_pair(pair) or _PAIRS[0]
    return [{"from": "human", "value": pair[question]}, {"from": "gpt", "value": pair[answer]}]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unusable("bad_row", "has a tool without a name.")
    return tool if "function" in tool else {"type": "function", "function": tool}


def _message(turn: Mapping[str, Any]) -> Message:
    name = role_name(turn)
    role = _ROLES.get(name)
    if role is None:
        raise Unusable("bad_row", f"has a turn by {name[:40]!r}, which is no known role.")
    value = next((turn[key] for key in _CONTENT_KEYS if turn.get(key) is not None), "")
    if name in _CALL_NAMES:
        return Message(role, "", calls=tuple(_calls(value)))
    content, inline_reasoning = _content(value)
    reasoning = next((turn[key] for key in _REASONING_KEYS if turn.get(key)), inline_reasoning)
    calls = turn.get("tool_calls") or turn.get("function_call") or ()
    return Message(
        role,
        content,
        reasoning=text_of(reasoning, "reasoning") if role == "assistant" else "",
        calls=tuple(_calls(calls)) if role == "assistant" and calls else (),
        name=text_of(turn.get("name"), "name") if role == "tool" else "",
        call_id=text_of(turn.get("tool_call_id"), "tool_call_id") if role == "tool" else "",
    )


def _content(value: Any) -> tuple[str, str]:
    """Text and reasoning, from text or from a list of blocks. Raises Unusable for images and sounds."""
    if not isinstance(value, list | tuple):
        if isinstance(value, dict):  # the result of a tool, as JSON
            return json.dumps(value, ensure_ascii=False, default=str), ""
        return text_of(value, "content"), ""
    found: dict[str, list[str]] = {"text": [], "thinking": [], "reasoning": []}
    for block in value:
        kind = "text" if isinstance(block, str) else _block_kind(block)
        text = block if isinstance(block, str) else _block_text(block, kind)
        if kind not in found or not isinstance(text, str):
            raise Unusable("not_text", "has a turn with something that is not text.")
        found[kind].append(text)
    return "".join(found["text"]), "".join(found["thinking"] + found["reasoning"])


def _block_kind(block: Any) -> str:
    return str(block.get("type", "text")) if isinstance(block, dict) else ""


def _block_text(block: Any, kind: str) -> Any:
    if not isinstance(block, dict):
        return None
    return next((block[key] for key in (kind, "text", "value") if block.get(key)), "")


def _calls(value: Any) -> Iterator[ToolCall]:
    """{"name", "arguments"} or a list of these, also inside "function" and as JSON text."""
    if isinstance(value, str):
        value = _json_in(value, "a function call")
    for call in value if isinstance(value, list | tuple) else [value]:
        if isinstance(call, str):
            call = _json_in(call, "a function call")
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, str):  # {"function": "name", "arguments": ...}
            function = {**call, "name": function}
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unusable("bad_tool_call", "has a function call without a name.")
        arguments = function.get("arguments", function.get("parameters"))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False, default=str)
        yield ToolCall(function["name"], arguments, str(call.get("id") or ""))


def _json_in(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        code = "bad_tool_call" if "call" in what else "bad_row"
        raise Unusable(code, f"has {what} that is not JSON: {text.strip()[:60]!r}.") from error


def _with_calls_joined(messages: list[Message]) -> list[Message]:
    """ShareGPT gives each call a turn of its own; templates expect calls in the answer before."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if message.calls and not message.content and last and last.role == "assistant":
            joined[-1] = replace(last, calls=last.calls + message.calls)
        else:
            joined.append(message)
    return joined


def _with_numbered_calls(messages: list[Message]) -> list[Message]:
    """With call ids that are the same in every row, so that rows of one shape share a layout."""
    numbered: list[Message] = []
    pending: list[tuple[str, ToolCall]] = []  # the id in the data, the call as numbered
    count = 0
    for message in messages:
        if message.calls:
            # Mistral's templates accept only ids of nine letters and digits.
            calls = tuple(
                replace(call, id=f"call{number:05d}")
                for number, call in enumerate(message.calls, start=count)
            )
            count += len(calls)
            pending = [(old.id, new) for old, new in zip(message.calls, calls, strict=True)]
            message = replace(message, calls=calls)
        elif message.role == "tool" and pending:
            at = next((i for i, (id, _) in enumerate(pending) if id == message.call_id), 0)
            _, call = pending.pop(at)
            message = replace(message, call_id=call.id, name=message.name or call.name)
        numbered.append(message)
    return numbered
