"""Detects which of the formats in `rules.py` the rows have, and which column holds which part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import Format
from qlora_space.data.formats.choices import choice_columns, joined
from qlora_space.data.formats.columns import has_column
from qlora_space.data.formats.guess import guess, read_text
from qlora_space.data.formats.rules import (
    CHOICES,
    COMPARED,
    NEEDS_ANSWER,
    RULE_OF,
    RULES,
    Part,
    Rule,
)
from qlora_space.data.formats.values import Values, listed

CHOSEN = 1.0
GUESS_BELOW = 0.7
"""A detection of less confidence is a guess: it is trained on only once a person has confirmed it."""


class UnknownFormat(DatasetError):
    """The rows can be read, but which column is what cannot be told."""


@dataclass(frozen=True)
class Detection:
    """Which format the rows have, and which column holds which part (`mapping`: part -> column).

    `instruction`: text that stands before each prompt.
    """

    format: Format
    mapping: dict[str, str]
    reason: str
    confidence: float
    instruction: str = ""

    @property
    def is_guess(self) -> bool:
        return self.confidence < GUESS_BELOW

    @property
    def is_chosen(self) -> bool:
        """Whether the user gave the format or the columns."""
        return self.confidence == CHOSEN

    def __hash__(self) -> int:
        return hash((self.format, tuple(self.mapping.items())))


def detect(
    columns: Sequence[str],
    sample_rows: Sequence[Mapping[str, Any]],
    format: Format | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Detection:
    """Detect format and columns; a `format` or `mapping` given by the user takes precedence.

    In `mapping`, '' is an optional part that is left out even if there is a column for it.
    Raises UnknownFormat for an unknown part or column, or if nothing fits.
    """
    given = {part: column for part, column in (mapping or {}).items() if column}
    left_out = frozenset(mapping or ()) - given.keys()
    _check_columns(given, columns, sample_rows)
    rules = [RULE_OF[format]] if format else [r for r in RULES if set(given) <= set(r.part_names)]
    if not rules or not any(set(given) <= set(rule.part_names) for rule in rules):
        wrong = next(part for part in given if not rules or part not in rules[0].part_names)
        raise UnknownFormat(
            f"{wrong[:80]!r} is not a part of {format.value if format else 'any format'}.",
            f"The parts are {', '.join(rules[0].part_names if rules else _all_parts())}.",
        )
    values = Values(columns, sample_rows)
    is_free = format is None and not given
    if is_free:
        _refuse_ambiguous(values)
    for rule in rules:
        # With a format that the user chose, values may have any shape: each row is checked on its own.
        found = _match(rule, values, given, left_out, any_shape=format is not None)
        if found and is_free and rule.format is Format.TEXT:
            return _with_optional_parts(values, left_out, *read_text(values, found))
        if found and values.counts_from_one(found.get("completion"), found.get("choices")):
            raise UnknownFormat(
                f"“{found['completion']}” counts the choices from 1, not from 0.",
                "Write the letter or the text of the right choice instead.",
            )
        if found:
            return Detection(rule.format, found, *_why(rule, found, values, not is_free))
    if is_free and (guessed := guess(values)):
        return _with_optional_parts(values, left_out, *guessed)
    raise UnknownFormat(*_nothing_fits(format, values))


def _with_optional_parts(
    values: Values,
    left_out: frozenset[str],
    format: Format,
    mapping: dict[str, str],
    reason: str,
    confidence: float,
) -> Detection:
    """A guess with the parts that it did not have to guess: marks, tools, a system text."""
    found = _match(RULE_OF[format], values, mapping, left_out, any_shape=False)
    return Detection(format, found or mapping, reason, confidence)


def _match(
    rule: Rule,
    values: Values,
    given: Mapping[str, str],
    left_out: frozenset[str],
    any_shape: bool,
) -> dict[str, str] | None:
    found: dict[str, str] = dict(given)
    choices = choice_columns(values.columns)
    for part in rule.parts:
        if part.name in found or (part.name in left_out and not part.is_required):
            continue
        column = _column_for(part, values, any_shape, {*found.values(), *choices})
        if column is None and part.shape == "choices":
            column = _joined_choices(values, choices, found)
        if column is None and part.is_required:
            return None
        if column is not None:
            found[part.name] = column
    needed = NEEDS_ANSWER.get(found.get("prompt", "").lower().strip())
    if (
        needed
        and "prompt" not in given
        and found.get("completion", "").lower().strip() not in needed
    ):
        return None
    return {part.name: found[part.name] for part in rule.parts if part.name in found}


def _column_for(part: Part, values: Values, any_shape: bool, taken: set[str]) -> str | None:
    named = [column for column in map(values.named, part.columns) if column and column not in taken]
    # What the user chose may have any shape, but a weight is one only if it says yes or no.
    is_any = any_shape and part.shape != "marks"
    fitting = [column for column in named if is_any or values.fits(column, part.shape)]
    if not fitting and part.shape in ("messages", "turns"):
        fitting = [column for column in values.of_shape(part.shape) if column not in _PARTIAL]
        fitting += values.paths_of_shape(part.shape)
    if not fitting and part.name in ("system", "tools"):
        fitting = [path for path in map(values.path_named, part.columns) if path]
    return fitting[0] if fitting else None


def _joined_choices(values: Values, choices: Sequence[str], found: Mapping[str, str]) -> str | None:
    """The columns of choices as one, if the answers are among them; a person counts from 1, which is refused later."""
    name, answer = joined(choices), found.get("completion")
    if not choices or answer is None or not set(choices).isdisjoint(found.values()):
        return None
    is_right = values.has_right_choices(answer, choices) or values.counts_from_one(answer, name)
    return name if is_right else None


# A list of turns in these columns may be part of a conversation, not all of it.
_PARTIAL = (
    *("prompt", "completion", "chosen", "rejected", "preferred_output", "non_preferred_output"),
    *("history", "input", "output"),
)


def _why(
    rule: Rule, found: Mapping[str, str], values: Values, was_given: bool
) -> tuple[str, float]:
    shown = ", ".join(
        f"“{column}”" if part == column else f"“{column}” as {part}"
        for part, column in found.items()
    )
    columns = f"the column{'' if len(found) == 1 else 's'} {shown}"
    if was_given:
        return f"As you chose, from {columns}.", CHOSEN
    conversation = found.get("messages", found.get("conversations"))
    if conversation and conversation.lower().strip() not in rule.parts[0].columns:
        others = [c for c in values.columns if c != conversation and values.is_conversation(c)]
        if others:
            return f"“{conversation}” holds conversations, and so does “{others[0]}”.", 0.5
    unread = [values.named(name) for name in CHOICES if "choices" not in found]
    if "completion" in found and any(unread):
        left_out = next(filter(None, unread))
        return f"From {columns}. “{left_out}” is left out: it is no list of texts.", 0.7
    choices = [] if "choices" in found else choice_columns(values.columns)
    if "completion" in found and len(choices) > 2:
        what = (
            f"“{joined(choices)}” seem to be choices, but “{found['completion']}” is none of them."
        )
        return f"From {columns}. {what}", 0.5
    is_pair = rule.format is Format.PROMPT_COMPLETION and "input" not in found
    if is_pair and values.is_constant(found["prompt"]):
        return f"From {columns}. “{found['prompt']}” is the same in every row.", 0.5
    known = all(
        found.get(part.name, "").lower().strip() in ("", *part.columns) for part in rule.parts
    )
    return f"From {columns}.", 0.95 if known else 0.8


def _check_columns(
    given: Mapping[str, str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    for column in given.values():
        if column not in columns and not any(has_column(row, column) for row in rows):
            raise UnknownFormat(
                f"There is no column {column[:80]!r}.", f"The columns are {listed(columns)}."
            )


def _refuse_ambiguous(values: Values) -> None:
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


def _nothing_fits(format: Format | None, values: Values) -> tuple[str, str]:
    """What is wrong, and what to do."""
    shown = listed(values.columns)
    if format:
        parts = [part.name for part in RULE_OF[format].parts if part.is_required]
        example = ",".join(f"{part}=COLUMN" for part in parts)
        what = f"The format {format.value} needs {', '.join(parts)}; the columns are {shown}."
        return what, f"Say which column plays which part, as {example}."
    if token_ids := values.token_ids():
        return (
            f"The column “{token_ids}” holds token ids: the rows were tokenized already.",
            "Use the dataset that they were made of: ids fit one tokenizer only.",
        )
    if unread := values.unread_conversation():
        return unread
    if answer := values.answer_of_no_text():
        return f"The column “{answer}” holds true or false, lists or objects, not text.", (
            "Write the answers as text, or map another column."
        )
    return (
        f"The columns {shown} are of no known format.",
        "Say which column is the question and which the answer, as prompt=COLUMN,completion=COLUMN.",
    )


def _all_parts() -> list[str]:
    return list(dict.fromkeys(name for rule in RULES for name in rule.part_names))
