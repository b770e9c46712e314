"""Answers: of one model to many prompts, and of base and adapted model to one prompt, side by side."""

from qlora_space.generate.answers import answer_batch, end_token_ids
from qlora_space.generate.side_by_side import SideBySide

__all__ = ["SideBySide", "answer_batch", "end_token_ids"]
