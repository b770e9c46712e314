"""Which of a few choices an answer takes."""

import re
from collections import Counter
from collections.abc import Sequence

from qlora_space.core.scoring.text import bounded

_MAX_LABEL_CHARS = 60
_MAX_LABELS = 20
_ALONE = re.compile(r"\(?([A-J])(?:[).:](?:\s|$)|\)?$)")
_SAID = re.compile(
    r"(?i:\b(?:answer|option|choice))(?:\s+(?i:is))?[\s:*]{0,8}(?:\\boxed\{)?\(?([A-J])(?![\w'])"
)
_STANDING = re.compile(r"(?<![\w'])\(?([B-HJ])(?![\w'])")  # A and I are words


def choice_in(text: str) -> str:
    """The letter that the text chooses ('B', '(B)', 'B. Paris', 'The answer is B'), else its first line as a label, in
    lower case and without punctuation around it."""
    text = bounded(text)
    if found := _ALONE.match(text) or _SAID.search(text) or _STANDING.search(text[:400]):
        return found[1].upper()
    return _label(text)


def same_choice(answer: str, expected: str) -> bool:
    """A longer answer also counts if the label that is expected is how it begins: 'positive, because ...'."""
    wanted = choice_in(expected)
    if not wanted or choice_in(answer) == wanted:
        return bool(wanted)
    rest = bounded(answer).lower().removeprefix(wanted)
    is_letter = len(wanted) == 1 and wanted.isupper()
    return not is_letter and len(rest) < len(bounded(answer)) and not rest[:1].isalnum()


def is_letter(text: str) -> bool:
    """Whether the text is a choice by letter: the letter alone, or in front of what it stands for."""
    return bool(_ALONE.match(bounded(text)))


def are_labels(texts: Sequence[str]) -> bool:
    """Whether these are a few short answers again and again, as a classifier's are."""
    labels = Counter(map(_label, texts))
    is_short = all(len(text.strip()) <= _MAX_LABEL_CHARS for text in texts)
    is_few = 2 <= len(labels) <= min(_MAX_LABELS, len(texts) // 5)
    return is_short and is_few and "" not in labels


def _label(text: str) -> str:
    first = bounded(text).split("\n", 1)[0][:_MAX_LABEL_CHARS]
    return first.strip(" \t.,:;!\"'*`()[]").lower()
