"""Multiple choice: the choices below the question and the answer as "B. its text"."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from qlora_space.data.formats.columns import JOINED
from qlora_space.data.formats.content import text_of
from qlora_space.data.formats.turns import is_lettered
from qlora_space.data.rows import Unusable

# choice0, option_a, opa, A
CHOICE_COLUMN = re.compile(r"((?:choices?|options?|opt?|endings?)[_ -]?|)([a-h]|(?<=.)\d)")
_FIRST_LABELS = ("a", "0", "1")
_ORDER = "0123456789" + ascii_lowercase


def with_choices(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a row with its choices below the question, and the right one as the answer.

    Raises Unusable if the choices cannot be read or the answer is none of them.
    """
    labels, texts = _choices(parts["choices"])
    lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    answer = parts.get("completion")
    # Several words that are not a choice: the answer is written out already.
    is_written_out = (
        isinstance(answer, str) and answer.strip() not in texts and len(answer.split()) > 1
    )
    completion = answer if is_written_out else lines[_index_of(answer, labels, texts)]
    context = "\n".join(filter(None, (text_of(parts.get("input"), "input"), *lines)))
    return {**parts, "input": context, "completion": completion}


def choice_columns(columns: Iterable[str]) -> list[str]:
    """Columns that hold one choice each, from the first label on: A, B, C, D, or choice1, choice2. [] for none."""
    found = sorted(
        (match[1], _ORDER.index(match[2]), column)
        for column in columns
        if (match := CHOICE_COLUMN.fullmatch(column.lower().strip()))
    )
    for _, group in groupby(found, key=lambda each: each[0]):
        of_stem = list(group)
        numbers = [number for _, number, _ in of_stem]
        is_whole = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if len(numbers) > 1 and is_whole and _ORDER[numbers[0]] in _FIRST_LABELS:
            return [column for _, _, column in of_stem]
    return []


def joined(columns: Sequence[str]) -> str:
    """One name for several columns, which `value_at` reads as an object."""
    return JOINED.join(columns)


def names_a_choice(answer: Any, choices: Any) -> bool:
    """Whether the answer is the label, the index or the text of a choice."""
    try:
        _index_of(answer, *_choices(choices))
    except Unusable:
        return False
    return True


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """Labels and texts of {"text": [...], "label": [...]}, or of texts alone: A, B, C, ..."""
    labels: Any = list(ascii_uppercase)
    if is_lettered(value):
        value = {label: text for label, text in value.items() if text.strip()}
        return list(value), list(value.values())
    if isinstance(value, Mapping) and "text" not in value:
        return _of_columns(value)
    if isinstance(value, Mapping):
        labels, value = value.get("label", labels), value.get("text")
    are_lists = isinstance(value, list | tuple) and isinstance(labels, list | tuple)
    if not are_lists or not 2 <= len(value) <= len(labels):
        raise Unusable("bad_row", "the choices are not a list of two to 26 texts.")
    return [str(label) for label in labels[: len(value)]], [str(text) for text in value]


def _of_columns(value: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Of a column for each choice; a row may have fewer of them than others."""
    filled = {
        name: cell for name, cell in value.items() if str("" if cell is None else cell).strip()
    }
    matches = [CHOICE_COLUMN.fullmatch(name.lower().strip()) for name in filled]
    labels = [match[2].upper() for match in matches if match]
    if len(labels) < max(2, len(filled)):
        raise Unusable("bad_row", "the choices are not two or more columns such as A, B, C.")
    return labels, [text_of(cell, "choices").strip() for cell in filled.values()]


def _index_of(answer: Any, labels: list[str], texts: list[str]) -> int:
    """By its label; where no label is a number, by its index from 0; or by its text."""
    word = str(answer).strip()
    for label in (word, word.upper()):
        if label in labels:
            return labels.index(label)
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number and 0 <= answer < len(texts) and not any(label.isdecimal() for label in labels):
        return answer
    if word in texts:
        return texts.index(word)
    raise Unusable("bad_row", f"the answer {word[:40]!r} is not one of the choices.")
