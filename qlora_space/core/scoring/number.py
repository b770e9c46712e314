"""The number that an answer comes to."""

import re
from decimal import Decimal, InvalidOperation

from qlora_space.core.scoring.text import MAX_CHARS

_MAX_NUMBER_CHARS = 60
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\u2212])?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+|[eE][-+]?\d{1,3})?"
)
_MARKED = re.compile(r"####[ \t]*([^\n]{1,80})")
_SAID = re.compile(r"\banswer(?:\s+is|\s*[:=])[\s:*]{0,8}([^\n]{1,80})", re.IGNORECASE)
_AROUND = " \t$\u20ac\u00a3%*.:=\\"


def number_in(text: str) -> str | None:
    """The final number as the text has it, without signs of thousands and units; None if there is none.

    After `####` (GSM8K, arXiv 2110.14168), else in the last `\\boxed{}` (MATH, arXiv 2103.03874), else after "the
    answer is", else the last number of all, as lm-evaluation-harness's flexible-extract takes it. Of a longer text the
    last 20,000 characters are read.
    """
    text = text[-MAX_CHARS:]
    if marked := _MARKED.findall(text):
        return _first(marked[-1])
    if (boxed := _boxed(text)) is not None:
        return _first(boxed) or boxed.replace(" ", "")[:_MAX_NUMBER_CHARS]
    if (said := _SAID.findall(text)) and (number := _first(said[-1])):
        return number
    numbers = _NUMBER.findall(text)
    return _plain(numbers[-1]) if numbers else None


def same_number(answer: str, expected: str) -> bool:
    """Whether both come to the same value: 72, 72.0 and $72 are one; a boxed expression is compared as text."""
    one, other = number_in(answer), number_in(expected)
    if one is None or other is None:
        return False
    values = _value(one), _value(other)
    return one == other if None in values else values[0] == values[1]


def is_marked(text: str) -> bool:
    """Whether the text says which number it comes to, or is nothing but one."""
    if _MARKED.search(text[-MAX_CHARS:]) or "\\boxed{" in text[-MAX_CHARS:]:
        return number_in(text) is not None
    return len(text) <= _MAX_NUMBER_CHARS and bool(_NUMBER.fullmatch(text.strip(_AROUND + "\n")))


def _boxed(text: str) -> str | None:
    """What is in the last \\boxed{}, with its own braces paired."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for at in range(start, min(len(text), start + 400)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at].strip()
    return None


def _first(text: str) -> str | None:
    """A number that the text begins with, currency aside."""
    found = _NUMBER.match(text.lstrip(_AROUND.replace(".", "")))
    return _plain(found[0]) if found else None


def _plain(number: str) -> str | None:
    """None for one that no answer has."""
    if len(number) > _MAX_NUMBER_CHARS:
        return None
    return number.replace(",", "").replace("\u2212", "-").lstrip("+")


def _value(number: str) -> Decimal | None:
    above, _, below = number.partition("/")
    try:
        value = Decimal(above) / Decimal(below) if below else Decimal(above)
    except (InvalidOperation, ZeroDivisionError):
        return None
    return value if value.is_finite() else None
