"""Detects which of the formats in `rules.py` the rows have, and which column holds which part."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data.formats.rules import (
    ABOUT_A_ROW,
    CHOICES,
    COMPARED,
    RULE_OF,
    RULES,
    Part,
    Rule,
    Shape,
)
from qlora_space.data.formats.turns import first_answer, is_answer, is_calls, is_pairs, parse_turns

_LANGUAGE = re.compile(r"[a-z]{2,3}([_-]\w{2,4})?")


class UnknownFormat(DatasetError):
    """The rows can be read, but which column is what cannot be told."""


@dataclass(frozen=True)
class Detection:
    """Which format the rows have, and which column holds which part (`mapping`: part -> column)."""

    format: Format
    mapping: dict[str, str]
    reason: str
    confidence: float

    def __hash__(self) -> int:
        return hash((self.format, tuple(self.mapping.items())))


def detect(
    columns: Sequence[str],
    sample_rows: Sequence[Mapping[str, Any]],
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Detection:
    """Detect format and columns; a `format` or `mapping` given by the user takes precedence.

    Raises UnknownFormat for an unknown part or column, or if nothing fits.
    """
    given = dict(mapping or {})
    _check_columns(given, columns)
    rules = [RULE_OF[format]] if format else [r for r in RULES if set(given) <= set(r.part_names)]
    if not rules or not any(set(given) <= set(rule.part_names) for rule in rules):
        wrong = next(part for part in given if not rules or part not in rules[0].part_names)
        raise UnknownFormat(
            f"{wrong[:80]!r} is not a part of {format.value if format else 'any format'}.",
            f"The parts are {', '.join(rules[0].part_names if rules else _all_parts())}.",
        )
    values = _Values(columns, sample_rows)
    if format is None and not given:
        _refuse_ambiguous(values, sample_rows)
    for rule in rules:
        # With a format that the user chose, values may have any shape: each row is checked on its own.
        found = _match(rule, values, given, any_shape=format is not None)
        if found:
            return Detection(rule.format, found, *_why(rule, found, values, bool(format or given)))
    if format is None and not given and (guess := _guess(values)):
        return guess
    raise _nothing_fits(format, columns)


class _Values:
    """The columns and the shapes of the sample's values in them."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(columns)
        self._by_lower = {column.lower().strip(): column for column in reversed(columns)}
        self._shapes = {column: _shape_of([row.get(column) for row in rows]) for column in columns}

    def named(self, name: str) -> str | None:
        return self._by_lower.get(name)

    def fits(self, column: str, shape: Shape) -> bool:
        found = self._shapes[column]
        match shape:
            case "any":
                return True
            case "answer":
                return found not in ("other", "flag")
            case "either":
                return found not in ("other", "flag", "answers")
            case "conversation":
                return found in ("messages", "turns")
            case "turns":
                return found in ("turns", "pairs")
            case "text":
                return found in ("text", "empty", "number")
            case "choices":
                return found == "answers"
        return found == shape

    def is_conversation(self, column: str) -> bool:
        return self._shapes.get(column) in ("messages", "turns")

    def of_shape(self, shape: str) -> list[str]:
        return [column for column in self.columns if self._shapes[column] == shape]


def _shape_of(values: list[Any]) -> str:
    """That of most values: OpenAI messages, ShareGPT turns, text, empty, or something else."""
    kinds = [kind for kind in map(_kind, values) if kind != "empty"]
    return max(sorted(set(kinds)), key=kinds.count) if kinds else "empty"


def _kind(value: Any) -> str:
    if is_pairs(value):
        return "pairs"
    turns = parse_turns(value)
    if turns:
        if not any(is_answer(turn) for turn in turns):
            return "questions"
        return "messages" if any("role" in turn for turn in turns) else "turns"
    if value is None or value == "" or value == []:
        return "empty"
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    if is_calls(value) or first_answer(value) is not None:
        return "answers"
    return "text" if isinstance(value, str) else "other"


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
        fitting = [column for column in values.of_shape(part.shape) if column not in _PARTIAL]
    return fitting[0] if fitting else None


# A list of turns in these columns may be part of a conversation, not all of it.
_PARTIAL = ("prompt", "completion", "chosen", "rejected")


def _why(
    rule: Rule, found: Mapping[str, str], values: _Values, was_given: bool
) -> tuple[str, float]:
    shown = ", ".join(
        f"“{column}”" if part == column else f"“{column}” as {part}"
        for part, column in found.items()
    )
    columns = f"the column{'' if len(found) == 1 else 's'} {shown}"
    if was_given:
        return f"As you chose, from {columns}.", 1.0
    unread = [values.named(name) for name in CHOICES if "choices" not in found]
    if "completion" in found and any(unread):
        left_out = next(filter(None, unread))
        return f"From {columns}. “{left_out}” is left out: it is no list of texts.", 0.7
    known = all(
        found.get(part.name, "").lower().strip() in ("", *part.columns) for part in rule.parts
    )
    return f"From {columns}.", 0.95 if known else 0.8


def _guess(values: _Values) -> Detection | None:
    """One or two columns of text, or one of conversations, need no known names."""
    conversations = [c for c in ("chosen", *values.columns) if values.is_conversation(c)]
    if conversations:
        reason = f"“{conversations[0]}” holds whole conversations."
        return Detection(Format.MESSAGES, {"messages": conversations[0]}, reason, 0.6)
    texts = [
        column
        for column in values.of_shape("text")
        if column != "rejected" and not ABOUT_A_ROW.search(column)
    ]
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
            raise UnknownFormat(
                f"There is no column {column[:80]!r}.", f"The columns are {_listed(columns)}."
            )


def _refuse_ambiguous(values: _Values, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises UnknownFormat for rows where only a person can say which text is the answer."""
    if values.named("messages") or (values.named("chosen") and values.named("rejected")):
        return
    for pair in COMPARED:
        first, second = map(values.named, pair)
        if first and second:
            raise UnknownFormat(
                f"“{first}” and “{second}” are two answers of which one is better.",
                "Write the better one into a column chosen, the other into rejected.",
            )
    for column in values.of_shape("other"):
        cells = [row[column] for row in rows if row.get(column)]
        if cells and all(map(_is_translation, cells)):
            raise UnknownFormat(
                f"“{column}” holds one text in several languages: {_listed(list(cells[0]))}.",
                "Write one of them into a column prompt, the other into completion.",
            )


def _is_translation(cell: Any) -> bool:
    """{"en": "cheese", "de": "Käse"}"""
    is_dict = isinstance(cell, dict) and len(cell) > 1
    return is_dict and all(
        _LANGUAGE.fullmatch(key) and isinstance(text, str) for key, text in cell.items()
    )


def _nothing_fits(format: Format | None, columns: Sequence[str]) -> UnknownFormat:
    if format:
        parts = ", ".join(part.name for part in RULE_OF[format].parts if part.is_required)
        what = f"The format {format.value} needs {parts}; the columns are {_listed(columns)}."
        return UnknownFormat(what, f"Map them, for example {_example_mapping(format, columns)}.")
    what = f"The columns {_listed(columns)} are of no known format."
    example = _example_mapping(Format.PROMPT_COMPLETION, columns)
    return UnknownFormat(what, f"Say which is which, for example {example}.")


def _example_mapping(format: Format, columns: Sequence[str]) -> str:
    parts = [part.name for part in RULE_OF[format].parts if part.is_required]
    shown = [*columns, *("COLUMN",) * len(parts)]
    return ",".join(f"{part}={column}" for part, column in zip(parts, shown, strict=False))


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column[:60]) for column in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "") or "none"


def _all_parts() -> list[str]:
    return list(dict.fromkeys(name for rule in RULES for name in rule.part_names))
