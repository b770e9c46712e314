"""Generation: one model for many prompts, or base and adapted model for one prompt in one batch."""

from qlora_space.generate.answers import answer_batch, eos_token_ids
from qlora_space.generate.paired import PairedGenerator

__all__ = ["PairedGenerator", "answer_batch", "eos_token_ids"]
