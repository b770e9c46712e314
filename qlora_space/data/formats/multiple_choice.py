"""Multiple choice: the question with its choices, and the right one in words instead of its number."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from qlora_space.data.formats.turns import Unusable, text_of


def choose(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts with the choices below the question, and with an answer that is "B. its text".

    Raises Unusable if the choices cannot be read or the answer is none of them.
    """
    labels, texts = _choices(parts["choices"])
    lines = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
    answer = parts.get("completion")
    # More than one word that are no choice: the answer is written out already.
    is_free = isinstance(answer, str) and answer.strip() not in texts and len(answer.split()) > 1
    said = answer if is_free else lines[_index_of(answer, labels, texts)]
    asked = "\n".join(filter(None, (text_of(parts.get("input"), "input"), *lines)))
    return {**parts, "input": asked, "completion": said}


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """Labels and texts of {"text": [...], "label": [...]}, or of texts alone: A, B, C, ..."""
    labels: Any = list(ascii_uppercase)
    if isinstance(value, Mapping):
        labels, value = value.get("label", labels), value.get("text")
    are_lists = isinstance(value, list | tuple) and isinstance(labels, list | tuple)
    if not are_lists or not 2 <= len(value) <= len(labels):
        raise Unusable("bad_row", "the choices are not a list of two to 26 texts.")
    return [str(label) for label in labels[: len(value)]], [str(text) for text in value]


def _index_of(answer: Any, labels: list[str], texts: list[str]) -> int:
    """By its label; where no label is a number by its number, from 0; or by its text."""
    word = str(answer).strip()
    if word in labels:
        return labels.index(word)
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if is_number and 0 <= answer < len(texts) and not any(label.isdecimal() for label in labels):
        return answer
    if word in texts:
        return texts.index(word)
    raise Unusable("bad_row", f"the answer {word[:40]!r} is none of the choices.")
