"""What kinds of rows there are. `RULES` is the one table behind detection, docs and tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qlora_space.errors import DatasetError
from qlora_space.request import Format

Shape = Literal["messages", "turns", "text", "either", "any"]


@dataclass(frozen=True)
class Part:
    """One part of a format, the columns that usually hold it, and the shape of its values."""

    name: str
    columns: tuple[str, ...]
    shape: Shape = "text"
    is_required: bool = True


@dataclass(frozen=True)
class Rule:
    """One format. `example` is a row as the documentation shows it."""

    format: Format
    parts: tuple[Part, ...]
    example: str

    @property
    def part_names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)


@dataclass(frozen=True)
class Detection:
    """Which format the rows have, and which column plays which part."""

    format: Format
    mapping: dict[str, str]
    reason: str
    confidence: float

    def __hash__(self) -> int:
        return hash((self.format, tuple(self.mapping.items())))


_SYSTEM = Part("system", ("system", "system_prompt", "system_message"), is_required=False)
_ANSWERS = (
    "completion",
    "chosen",
    "answer",
    "response",
    "output",
    "solution",
    "target",
    "reply",
    "assistant",
    "summary",
    "highlights",
    "label",
)
_QUESTIONS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "input",
    "problem",
    "conversations",
    "conversation",
    "source",
    "user",
    "document",
    "article",
)

ASSISTANT_NAMES = frozenset(("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai"))

RULES: tuple[Rule, ...] = (
    Rule(
        Format.MESSAGES,
        (
            Part("messages", ("messages", "conversation", "conversations", "chat"), "messages"),
            _SYSTEM,
        ),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}',
    ),
    Rule(
        Format.SHAREGPT,
        (Part("conversations", ("conversations", "conversation", "messages"), "turns"), _SYSTEM),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}',
    ),
    Rule(
        Format.ALPACA,
        (
            Part("instruction", ("instruction",)),
            Part("input", ("input", "context"), is_required=False),
            Part("output", ("output", "response")),
            _SYSTEM,
            Part("history", ("history",), "any", is_required=False),
        ),
        '{"instruction": "Translate to French.", "input": "cheese", "output": "fromage"}',
    ),
    Rule(
        Format.PROMPT_COMPLETION,
        (Part("prompt", _QUESTIONS, "either"), Part("completion", _ANSWERS, "either"), _SYSTEM),
        '{"prompt": "The capital of France is", "completion": "Paris."}',
    ),
    Rule(
        Format.TEXT,
        (Part("text", ("text", "content", "body", "markdown", "story", "code")),),
        '{"text": "Any text, learned as it is."}',
    ),
)
_RULE_OF = {rule.format: rule for rule in RULES}


def detect(
    columns: Sequence[str],
    sample_rows: Sequence[Mapping[str, Any]],
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Detection:
    """Find format and columns; `format` and `mapping` are the user's word and win.

    Raises DatasetError for an unknown part or column, or if nothing fits.
    """
    given = dict(mapping or {})
    _check_columns(given, columns)
    rules = [_RULE_OF[format]] if format else [r for r in RULES if set(given) <= set(r.part_names)]
    if not rules or not any(set(given) <= set(rule.part_names) for rule in rules):
        wrong = next(part for part in given if not rules or part not in rules[0].part_names)
        raise DatasetError(
            f"{wrong[:80]!r} is not a part of {format.value if format else 'any format'}.",
            f"The parts are {', '.join(rules[0].part_names if rules else _all_parts())}.",
        )
    values = _Values(columns, sample_rows)
    for rule in rules:
        # A format that the user named may have any shape of values: each row is then checked alone.
        found = _match(rule, values, given, any_shape=format is not None)
        if found:
            return Detection(rule.format, found, *_why(rule, found, bool(format or given)))
    if format is None and not given and (guess := _guess(values)):
        return guess
    raise _nothing_fits(format, columns)


class _Values:
    """The columns and what kinds of values the sample has in them."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(columns)
        self._by_lower = {column.lower().strip(): column for column in reversed(columns)}
        self._shapes = {column: _shape_of([row.get(column) for row in rows]) for column in columns}

    def named(self, name: str) -> str | None:
        return self._by_lower.get(name)

    def fits(self, column: str, shape: Shape) -> bool:
        found = self._shapes[column]
        if shape in ("either", "any"):
            return shape == "any" or found != "other"
        return found == shape or (shape == "text" and found in ("empty", "number"))

    def is_conversation(self, column: str) -> bool:
        return self._shapes.get(column) in ("messages", "turns")

    def of_shape(self, shape: str) -> list[str]:
        return [column for column in self.columns if self._shapes[column] == shape]


def _shape_of(values: list[Any]) -> str:
    """What most values are: OpenAI messages, ShareGPT turns, text, empty, or something else."""
    kinds = [kind for kind in map(_kind, values) if kind != "empty"]
    return max(sorted(set(kinds)), key=kinds.count) if kinds else "empty"


def _kind(value: Any) -> str:
    turns = parse_turns(value)
    if turns:
        if not any(is_answer(turn) for turn in turns):
            return "questions"
        return "messages" if any("role" in turn for turn in turns) else "turns"
    if value is None or value == "" or value == []:
        return "empty"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "other"


def role_name(turn: Mapping[str, Any]) -> str:
    """How the row spells the speaker of a turn, in lower case."""
    return str(turn.get("role") or turn.get("from") or "").strip().lower()


def is_answer(turn: Mapping[str, Any]) -> bool:
    return role_name(turn) in ASSISTANT_NAMES


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
    is_list = isinstance(value, list | tuple) and bool(value)
    return list(value) if is_list and all(_is_turn(turn) for turn in value) else []


def _turns_in_dict(value: dict[str, Any]) -> list[Any]:
    lists = [inner for inner in value.values() if isinstance(inner, list)]
    if _is_turn(value) and len(lists) == len(value) and len({len(x) for x in lists}) == 1:
        return [dict(zip(value, turn, strict=True)) for turn in zip(*lists, strict=True)]
    return [value]


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _match(
    rule: Rule, values: _Values, given: Mapping[str, str], any_shape: bool
) -> dict[str, str] | None:
    found: dict[str, str] = dict(given)
    for part in rule.parts:
        if part.name in found:
            continue
        column = _column_for(part, values, any_shape, set(found.values()))
        if column is None and part.is_required:
            return None
        if column is not None:
            found[part.name] = column
    return {part.name: found[part.name] for part in rule.parts if part.name in found}


def _column_for(part: Part, values: _Values, any_shape: bool, taken: set[str]) -> str | None:
    named = [column for column in map(values.named, part.columns) if column and column not in taken]
    fitting = [column for column in named if any_shape or values.fits(column, part.shape)]
    if not fitting and part.shape in ("messages", "turns"):
        fitting = [column for column in values.of_shape(part.shape) if column not in _SIDES]
    return fitting[0] if fitting else None


# A list of turns in these columns may be one side of a conversation, not the whole of it.
_SIDES = ("prompt", "completion", "chosen", "rejected")


def _why(rule: Rule, found: Mapping[str, str], was_given: bool) -> tuple[str, float]:
    shown = ", ".join(
        f"“{column}”" if part == column else f"“{column}” as {part}"
        for part, column in found.items()
    )
    columns = f"the column{'' if len(found) == 1 else 's'} {shown}"
    if was_given:
        return f"As you chose, from {columns}.", 1.0
    ignored = " Only the chosen answers are trained on." if "chosen" in found.values() else ""
    return f"From {columns}.{ignored}", 0.95


def _guess(values: _Values) -> Detection | None:
    """One or two columns of text need no known names."""
    conversations = [c for c in ("chosen", *values.columns) if values.is_conversation(c)]
    if conversations:
        reason = f"“{conversations[0]}” holds whole conversations."
        return Detection(Format.MESSAGES, {"messages": conversations[0]}, reason, 0.6)
    texts = [column for column in values.of_shape("text") if column != "rejected"]
    if len(texts) == 1:
        reason = f"“{texts[0]}” is the only column of text."
        return Detection(Format.TEXT, {"text": texts[0]}, reason, 0.5)
    if len(texts) == 2:
        reason = f"Two columns of text: “{texts[0]}” taken as prompt, “{texts[1]}” as answer."
        mapping = {"prompt": texts[0], "completion": texts[1]}
        return Detection(Format.PROMPT_COMPLETION, mapping, reason, 0.4)
    return None


def _check_columns(given: Mapping[str, str], columns: Sequence[str]) -> None:
    for column in given.values():
        if column not in columns:
            raise DatasetError(
                f"There is no column {column[:80]!r}.", f"The columns are {_listed(columns)}."
            )


def _nothing_fits(format: Format | None, columns: Sequence[str]) -> DatasetError:
    if format:
        parts = ", ".join(part.name for part in _RULE_OF[format].parts if part.is_required)
        what = f"The format {format.value} needs {parts}; the columns are {_listed(columns)}."
        return DatasetError(what, f"Map them, for example {_example_mapping(format, columns)}.")
    what = f"The columns {_listed(columns)} are of no known format."
    example = _example_mapping(Format.PROMPT_COMPLETION, columns)
    return DatasetError(what, f"Say which is which, for example {example}.")


def _example_mapping(format: Format, columns: Sequence[str]) -> str:
    parts = [part.name for part in _RULE_OF[format].parts if part.is_required]
    shown = [*columns, *("COLUMN",) * len(parts)]
    return ",".join(f"{part}={column}" for part, column in zip(parts, shown, strict=False))


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column[:60]) for column in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "") or "none"


def _all_parts() -> list[str]:
    return list(dict.fromkeys(name for rule in RULES for name in rule.part_names))
