"""The scores, and what each of them measures."""

from collections.abc import Callable

from qlora_space.core.options import Score
from qlora_space.core.scoring.choice import same_choice
from qlora_space.core.scoring.number import same_number
from qlora_space.core.scoring.overlap import rouge_l, token_f1
from qlora_space.core.scoring.structured import (
    code_parses,
    field_match,
    is_json,
    same_calls,
    same_functions,
)

Measure = Callable[[str, str], float]


def exact(answer: str, expected: str) -> float:
    """1 where both are the same text, space around them aside."""
    return float(answer.strip() == expected.strip())


_MEASURES: dict[str, dict[str, Measure]] = {
    "number": {"number": same_number},
    "choice": {"choice": same_choice},
    "json": {"json_fields": field_match, "json_valid": lambda answer, _: is_json(answer)},
    "tool_call": {"tool_call": same_calls, "function": same_functions},
    "f1": {"f1": token_f1},
    "rouge_l": {"rouge_l": rouge_l},
    "code": {"code_parses": lambda answer, _: code_parses(answer)},
    "exact": {},
    "none": {},
}
MEASURE_NAMES = {
    "number": "Right number",
    "choice": "Right choice",
    "json_fields": "JSON fields (F1)",
    "json_valid": "Valid JSON",
    "tool_call": "Right calls",
    "function": "Right functions",
    "f1": "Shared words (F1)",
    "rouge_l": "ROUGE-L",
    "code_parses": "Code that parses",
    "exact": "Exact answers",
    "general": "All general questions",
    "knowledge": "Knowledge",
    "instructions": "Instructions",
    "arithmetic": "Arithmetic",
}
"""In words, by the name of a measure."""


SCORE_NAMES: dict[Score, str] = {
    "number": "Final number",
    "choice": "Multiple choice or label",
    "json": "JSON, field by field",
    "tool_call": "Function calls",
    "f1": "Shared words (F1)",
    "rouge_l": "ROUGE-L",
    "code": "Code that parses",
    "exact": "Exact answers only",
    "none": "Held-out loss only",
}


def measured(score: Score, answer: str, expected: str) -> dict[str, float]:
    """What one answer is worth, 0 to 1, by measure: the score's own first, and whether it is exact; {} for 'none'."""
    if score == "none":
        return {}
    own = {name: float(measure(answer, expected)) for name, measure in _MEASURES[score].items()}
    return own | {"exact": exact(answer, expected)}


def measure_of(score: Score) -> str:
    """The first measure of a score but 'none', by which an answer is right."""
    return next(iter(_MEASURES[score]), "exact")
