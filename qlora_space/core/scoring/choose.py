"""Which score fits a dataset, by its expected answers."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_space.core.options import Score
from qlora_space.core.scoring.choice import are_labels, is_letter
from qlora_space.core.scoring.number import is_marked
from qlora_space.core.scoring.overlap import words_of
from qlora_space.core.scoring.structured import calls_in, is_code, is_json

MAX_LOOKED_AT = 200
_MOST = 0.8
_SHORT_WORDS = 40
_Kind = tuple[Score, float, Callable[[str], bool], str]
# In this order: the first that fits. A call is JSON too, and a number parses as code.
_KINDS: tuple[_Kind, ...] = (
    ("tool_call", 0.5, lambda text: bool(calls_in(text)), "call a function"),
    ("json", _MOST, is_json, "are JSON"),
    ("number", _MOST, is_marked, "come to a number"),
    ("choice", _MOST, is_letter, "choose a letter"),
    ("code", _MOST, is_code, "are Python"),
)


@dataclass(frozen=True)
class ChosenScore:
    """`why` goes on from a field's value: '187 of 200 answers come to a number'."""

    score: Score
    why: str


def choose_score(expected: Sequence[str]) -> ChosenScore:
    """By the expected answers of a dataset, of which the first 200 are looked at."""
    texts = list(expected[:MAX_LOOKED_AT])
    if not texts:
        return ChosenScore("none", "there are no answers")
    for score, share, fits, words in _KINDS:
        count = sum(map(fits, texts))
        if count >= share * len(texts):
            return ChosenScore(score, f"{count:,} of {len(texts):,} answers {words}")
    if are_labels(texts):
        return ChosenScore("choice", f"{len(set(texts)):,} labels in {len(texts):,} answers")
    words = statistics.median(len(words_of(text)) for text in texts)
    length = f"answers have {words:g} words"
    return ChosenScore("f1" if words <= _SHORT_WORDS else "rouge_l", length)
