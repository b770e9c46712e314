"""What a run is evaluated on, fixed from its first step to its report."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from qlora_space.core.demo import GENERAL_FILE
from qlora_space.core.general_questions import GENERAL_QUESTIONS
from qlora_space.core.options import Format, Score
from qlora_space.data import Prepared, Renderer
from qlora_space.plan import Plan
from qlora_space.plan.eval_cost import (
    LONGEST_ANSWER_TOKENS,
    LONGEST_EXACT_ANSWER_TOKENS,
    SPARE_TOKENS,
)
from qlora_space.train.forgetting import general_prompts


@dataclass(frozen=True)
class HeldOut:
    """Prompts are token ids; `limits` says how many tokens the answer to each may have."""

    rows: Dataset | None
    prompts: tuple[list[int], ...]
    questions: tuple[str, ...]
    expected: tuple[str, ...]
    limits: tuple[int, ...]
    num_scored: int  # answers that the report scores, of the first prompts
    stop_token_ids: tuple[int, ...]
    can_match: bool  # answers are short enough to be the same word for word
    general: Dataset | None
    general_prompts: tuple[list[int], ...] = ()  # in the base's own chat template

    @property
    def general_limits(self) -> tuple[int, ...]:
        """Most tokens of the answer to each general question."""
        return tuple(
            q.max_new_tokens for q, _ in zip(GENERAL_QUESTIONS, self.general_prompts, strict=False)
        )


def held_out(tokenizer: PreTrainedTokenizerBase, prepared: Prepared, plan: Plan) -> HeldOut:
    """Render the held-out prompts, once for the whole run."""
    manifest = prepared.manifest
    examples = prepared.eval_examples()
    renderer = Renderer(tokenizer, manifest.format)
    sizes = [len(tokenizer(e.expected, add_special_tokens=False)["input_ids"]) for e in examples]
    is_short = bool(sizes) and statistics.median(sizes) <= LONGEST_EXACT_ANSWER_TOKENS
    is_scored = plan.score != "none" and manifest.format is not Format.TEXT
    num_scored = min(plan.num_scored_rows, len(examples)) if is_scored else 0
    limits = answer_limits(sizes, plan.score)
    kept = slice(max(num_scored, plan.num_samples))
    return HeldOut(
        rows=Dataset.from_file(str(prepared.eval_file)) if manifest.eval_rows else None,
        prompts=tuple(renderer.prompt_ids(e.messages) for e in examples[kept]),
        questions=tuple(e.messages[-1].content for e in examples[kept]),
        expected=tuple(e.expected for e in examples[kept]),
        limits=limits[kept],
        num_scored=num_scored,
        stop_token_ids=manifest.stop_token_ids,
        can_match=is_short,
        general=_general_rows(tokenizer) if plan.base.source == "demo" else None,
        general_prompts=general_prompts(tokenizer) if plan.forgetting else (),
    )


def answer_limits(sizes: Sequence[int], score: Score) -> tuple[int, ...]:
    """Most tokens of the answer to each prompt, by the tokens of all expected answers: what is longer than its own is
    not that answer, and twice as long is no better one. A number may come after as much reasoning as 95 % of the rows
    have, or as its own."""
    longest = min(max(sizes, default=0) + SPARE_TOKENS, LONGEST_ANSWER_TOKENS)
    if score == "number":
        usual = sorted(sizes)[int(0.95 * (len(sizes) - 1))] if sizes else 0
        return tuple(min(max(size, usual) + SPARE_TOKENS, longest) for size in sizes)
    factor = 1 if score == "exact" else 2
    return tuple(min(factor * size + SPARE_TOKENS, longest) for size in sizes)


def _general_rows(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Text like that the embedded base was pretrained on, every token with a loss."""
    texts = [json.loads(line)["text"] for line in GENERAL_FILE.read_text("utf-8").splitlines()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": ids, "seq_lengths": [[len(i)] for i in ids]}
    )
