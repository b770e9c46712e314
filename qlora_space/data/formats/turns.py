"""Parses the turns of a conversation, in any of the usual spellings, into Messages."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_space.data.formats.content import parse_content, text_of
from qlora_space.data.formats.literals import is_literal_like, parse_literal
from qlora_space.data.formats.marks import LEFT_OUT_NAMES, TRAINED_NAMES, is_trained
from qlora_space.data.formats.media import refuse_media_of_turn
from qlora_space.data.formats.rules import ABOUT_A_ROW
from qlora_space.data.formats.tool_calls import (
    id_of,
    parse_calls,
    with_calls_joined,
    with_numbered_calls,
    with_reasoning_joined,
)
from qlora_space.data.messages import Message, Role
from qlora_space.data.rows import Unusable

ASSISTANT_NAMES = frozenset(
    ("assistant", "gpt", "chatgpt", "bot", "chatbot", "bing", "bard", "model", "ai", "claude")
)
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
_ROLE_KEYS = ("role", "from", "speaker", "sender", "author")
# Items of OpenAI's Responses that have a type instead of a role.
_ROLE_OF_TYPE = {
    "function_call": "function_call",
    "function_call_output": "tool",
    "reasoning": "assistant",
}
_CONTENT_KEYS = ("content", "value", "text", "parts", "message", "output", "summary")
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
_CALL_KEYS = ("tool_calls", "function_call", "observation", "name", "arguments")
_ABOUT_A_TURN = (
    *("id", "call_id", "tool_call_id", "type", "channel", "recipient", "status", "create_time"),
    *("update_time", "metadata", "end_turn", "uuid", "created_at", "updated_at", "timestamp"),
)
_TO_EVERYBODY = ("all", "user", "assistant", "final")


def role_name(turn: Mapping[str, Any]) -> str:
    """The role of a turn as the row spells it, in lower case."""
    found = next((turn[key] for key in _ROLE_KEYS if turn.get(key)), None)
    if isinstance(found, Mapping):  # ChatGPT's export: {"author": {"role": ...}}
        found = found.get("role")
    return str(found or _ROLE_OF_TYPE.get(str(turn.get("type")), "")).strip().lower()


def is_answer(turn: Mapping[str, Any]) -> bool:
    return role_name(turn) in ASSISTANT_NAMES | _CALL_NAMES


def unknown_role(turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The first role that is not known."""
    return next((name for name in map(role_name, turns) if name not in _ROLES), None)


def parse_turns(value: Any) -> list[dict[str, Any]]:
    """Turns from a list, one turn, a dict of columns, a tree, or text of these; [] if it is none of these."""
    if isinstance(value, str):
        if not is_literal_like(value):
            return []
        try:
            value = parse_literal(value)
        except ValueError:
            return []
    if isinstance(value, dict):
        value = _turns_in_dict(value)
    if is_pairs(value):
        return [turn for pair in value for turn in _turns_in_pair(pair)]
    is_list = isinstance(value, list | tuple) and bool(value)
    return list(value) if is_list and all(_is_turn(turn) for turn in value) else []


def turns_of_text_pairs(value: Any) -> list[dict[str, Any]]:
    """Turns of [[question, answer], ...] or [[role, text], ...]; [] for anything else, and where it may be either.

    Only for columns named like a conversation: pairs of texts may be anything.
    """
    if isinstance(value, str) and is_literal_like(value):
        try:
            value = parse_literal(value)
        except ValueError:
            return []
    if not isinstance(value, list | tuple) or not value or not all(map(_is_text_pair, value)):
        return []
    with_role = [str(first).strip().lower() in _ROLES for first, _ in value]
    if all(with_role):
        return [{"from": role, "value": text} for role, text in value]
    if any(with_role):
        return []
    return [
        {"from": who, "value": text}
        for pair in value
        for who, text in zip(("human", "gpt"), pair, strict=True)
        if text is not None
    ]


def _is_text_pair(value: Any) -> bool:
    """The last question may be without an answer."""
    is_two = isinstance(value, list | tuple) and len(value) == 2
    return is_two and isinstance(value[0], str) and isinstance(value[1], str | None)


def is_pairs(value: Any) -> bool:
    """[{"input": ..., "output": ...}, ...]: every object is a question and its answer."""
    is_list = isinstance(value, list | tuple) and bool(value)
    return is_list and all(_names_in_pair(pair) is not None for pair in value)


def first_answer(value: Any) -> str | None:
    """The first of several answers, {"text": [...]} or a list of texts; None for anything else."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        value = value["text"] or [""]
    is_texts = isinstance(value, list | tuple) and bool(value)
    return value[0] if is_texts and all(isinstance(text, str) for text in value) else None


def is_lettered(value: Any) -> bool:
    """{"A": "a text", "B": ...}: choices by their letters."""
    is_dict = isinstance(value, dict) and len(value) > 1
    return is_dict and all(
        isinstance(key, str) and len(key) == 1 and key.isalnum() and isinstance(text, str)
        for key, text in value.items()
    )


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
    messages = [message for turn in turns for message in _messages(turn)]
    return with_numbered_calls(with_calls_joined(with_reasoning_joined(messages)))


def _turns_in_dict(value: dict[str, Any]) -> list[Any]:
    if tree := _turns_in_tree(value):
        return tree
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if _is_turn(value) and len(lists) == len(value) and len({len(x) for x in lists}) == 1:
        return [dict(zip(value, turn, strict=True)) for turn in zip(*lists, strict=True)]
    return [value]


def _turns_in_tree(nodes: dict[str, Any]) -> list[Any]:
    """ChatGPT's export: {id: {"message", "parent", "children"}}; the newest branch. [] for anything else."""
    if not nodes or not all(isinstance(n, dict) and "message" in n for n in nodes.values()):
        return []
    at = next((key for key, node in nodes.items() if node.get("parent") not in nodes), None)
    turns: list[Any] = []
    for _ in range(len(nodes)):
        node = nodes.get(at) if isinstance(at, str) else None
        if node is None:
            break
        if isinstance(node["message"], dict):
            turns.append(node["message"])
        children = node.get("children")
        at = children[-1] if isinstance(children, list) and children else None
    return turns


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    # Of a comment, "author" is the name of a person.
    keys = _ROLE_KEYS if isinstance(value.get("author"), dict) else _ROLE_KEYS[:-1]
    has_role = any(key in value for key in keys)
    return has_role or str(value.get("type")) in _ROLE_OF_TYPE


def _names_in_pair(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or _is_turn(value):
        return None
    names = next((pair for pair in _PAIRS if pair[0] in value and pair[1] in value), None)
    return None if names and _has_more(value, names) else names


def _has_more(value: Mapping[str, Any], names: tuple[str, str]) -> bool:
    """Whether an object holds more than a question and its answer, such as a passage or choices."""
    known = (*names, *TRAINED_NAMES, *LEFT_OUT_NAMES, "system")
    more = [
        key
        for key, each in value.items()
        if key not in known and isinstance(each, str | list | dict)
    ]
    return any(value[key] and not ABOUT_A_ROW.search(str(key)) for key in more)


def _turns_in_pair(pair: dict[str, Any]) -> list[dict[str, Any]]:
    question, answer = _names_in_pair(pair) or _PAIRS[0]
    marks = {key: value for key, value in pair.items() if key not in (question, answer)}
    return [
        {"from": "human", "value": pair[question]},
        {**marks, "from": "gpt", "value": pair[answer]},
    ]


def _messages(turn: Mapping[str, Any]) -> Iterator[Message]:
    """A turn is one message; several if it holds results of tools."""
    name = role_name(turn)
    role = _ROLES.get(name)
    if role is None:
        raise Unusable("bad_row", f"has a turn by {name[:40]!r}, which is no known role.")
    refuse_media_of_turn(turn)
    value = next((turn[key] for key in _CONTENT_KEYS if turn.get(key) is not None), None)
    if value is None:
        _refuse_unread_keys(turn)
        value = ""
    if name in _CALL_NAMES:
        calls = tuple(parse_calls(turn if "name" in turn else value))
        yield Message(role, "", calls=calls, is_trained=is_trained(turn))
    elif role == "assistant":
        yield _answer(turn, value)
    elif role == "tool" and "observation" in turn:  # ChatGLM3: a call and its result in one
        yield Message("assistant", "", calls=tuple(parse_calls(turn)), is_trained=is_trained(turn))
        yield Message(role, parse_content(turn["observation"]).text)
    elif role == "tool":
        name = text_of(turn.get("name"), "name")
        content = parse_content(value)
        yield from content.results
        if content.text or not content.results:
            yield Message(role, content.text, name=name, call_id=id_of(turn))
    else:
        content = parse_content(value)
        yield from content.results
        if content.text.strip() or not content.results:
            yield Message(role, content.text)


def _refuse_unread_keys(turn: Mapping[str, Any]) -> None:
    """Raises Unusable for a turn without a text that says something under keys that are not read."""
    known = (*_ROLE_KEYS, *_REASONING_KEYS, *_CALL_KEYS, *TRAINED_NAMES, *LEFT_OUT_NAMES)
    said = [key for key, value in turn.items() if value not in (None, "", [], {})]
    unread = [str(key) for key in said if key not in (*known, *_ABOUT_A_TURN)]
    if unread and not any(key in _CALL_KEYS for key in said):
        keys = ", ".join(map(repr, unread[:5]))
        raise Unusable(
            "bad_row", f"has a turn without a text; what it has is not read: {keys[:80]}."
        )


def _answer(turn: Mapping[str, Any], value: Any) -> Message:
    content = parse_content(value)
    if content.results:
        raise Unusable("not_text", "has an answer that holds the result of a tool.")
    reasoning = next((turn[key] for key in _REASONING_KEYS if turn.get(key)), content.reasoning)
    text, calls = content.text, (*content.calls, *_calls_beside(turn))
    recipient = str(turn.get("recipient") or "all")
    if recipient not in _TO_EVERYBODY:  # Harmony, ChatGPT: the content is what the tool gets
        calls = tuple(
            parse_calls({"name": recipient.removeprefix("functions."), "arguments": text})
        )
        text = ""
    elif turn.get("channel") == "analysis" or turn.get("type") == "reasoning":
        reasoning, text = text_of(reasoning, "reasoning") or text, ""
    return Message(
        "assistant",
        text,
        reasoning=text_of(reasoning, "reasoning"),
        calls=calls,
        is_trained=is_trained(turn),
    )


def _calls_beside(turn: Mapping[str, Any]) -> Iterator[Any]:
    calls = turn.get("tool_calls") or turn.get("function_call")
    if calls:
        yield from parse_calls(calls)
