"""What base and trained model answer to general questions, which say nothing of the dataset."""

from collections.abc import Sequence
from typing import get_args

from transformers import PreTrainedTokenizerBase

from qlora_space.core.errors import ModelError
from qlora_space.core.general_questions import GENERAL_QUESTIONS, Kind
from qlora_space.core.options import Format
from qlora_space.data import Message, Renderer


def general_prompts(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], ...]:
    """Token ids of each question in the base's own chat template; () where it takes no question alone."""
    renderer = Renderer(tokenizer, Format.MESSAGES)
    try:
        return tuple(
            renderer.prompt_ids((Message("user", question.prompt),))
            for question in GENERAL_QUESTIONS
        )
    except ModelError:
        return ()


def right_answers(answers: Sequence[str]) -> dict[str, list[float]]:
    """Of answers to the first questions: 1 for each that is right, of all and by kind."""
    found: dict[str, list[float]] = {"general": [], **{kind: [] for kind in get_args(Kind)}}
    for question, answer in zip(GENERAL_QUESTIONS, answers, strict=False):
        value = float(question.is_right(answer))
        found["general"].append(value)
        found[question.kind].append(value)
    return found
