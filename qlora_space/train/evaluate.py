"""How good base and adapted model are on held-out rows: loss, exact answers, and what was forgotten."""

import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qlora_space.core.demo import GENERAL_FILE
from qlora_space.core.options import Format
from qlora_space.data import Prepared, Renderer
from qlora_space.generate import answer_batch
from qlora_space.plan import Plan
from qlora_space.plan.eval_cost import (
    EXACT_MATCH_ROWS,
    EXACT_MATCH_ROWS_OFFLOADED,
    LONGEST_ANSWER_TOKENS,
    LONGEST_EXACT_ANSWER_TOKENS,
    SPARE_TOKENS,
)
from qlora_space.runs import Answer, Scores
from qlora_space.train.trainer import RunTrainer

_SHOWN_ANSWERS = 8


@dataclass(frozen=True)
class HeldOut:
    """What is measured, fixed for the whole run. Prompts are token ids."""

    rows: Dataset | None
    prompts: tuple[list[int], ...]
    questions: tuple[str, ...]
    expected: tuple[str, ...]
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    can_match: bool
    general: Dataset | None


def held_out(tokenizer: PreTrainedTokenizerBase, prepared: Prepared, plan: Plan) -> HeldOut:
    """Render the held-out prompts once."""
    manifest = prepared.manifest
    most = EXACT_MATCH_ROWS_OFFLOADED if plan.cpu_offload else EXACT_MATCH_ROWS
    examples = prepared.eval_examples()[:most]
    renderer = Renderer(tokenizer, manifest.format)
    sizes = [len(tokenizer(e.expected, add_special_tokens=False)["input_ids"]) for e in examples]
    is_short = bool(sizes) and statistics.median(sizes) <= LONGEST_EXACT_ANSWER_TOKENS
    return HeldOut(
        rows=Dataset.from_file(str(prepared.eval_file)) if manifest.eval_rows else None,
        prompts=tuple(renderer.prompt_ids(e.messages) for e in examples),
        questions=tuple(e.messages[-1].content for e in examples),
        expected=tuple(e.expected for e in examples),
        max_new_tokens=min(max(sizes, default=0) + SPARE_TOKENS, LONGEST_ANSWER_TOKENS),
        stop_token_ids=manifest.stop_token_ids,
        can_match=is_short and manifest.format is not Format.TEXT,
        general=_general_rows(tokenizer) if plan.base.source == "demo" else None,
    )


def score(
    trainer: RunTrainer,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    held: HeldOut,
    *,
    with_adapter: bool,
    with_answers: bool,
    between_tokens: Callable[[], None] = lambda: None,
) -> tuple[Scores, list[str]]:
    """One line of the quality table, and the answers it rests on."""
    with nullcontext() if with_adapter else model.disable_adapter(), trainer.precision():
        answers: list[str] = []
        if with_answers and held.can_match:
            answers = answer_batch(
                model,
                tokenizer,
                held.prompts,
                held.max_new_tokens,
                held.stop_token_ids,
                between_tokens,
            )
        scores = Scores(
            name="trained" if with_adapter else "base",
            heldout_loss=trainer.mean_loss(held.rows) if held.rows else None,
            exact_match=_exact_match(answers, held.expected) if answers else None,
            general_loss=trainer.mean_loss(held.general) if held.general else None,
        )
    return scores, answers


def _exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    hits = sum(a.strip() == e.strip() for a, e in zip(answers, expected, strict=True))
    return hits / len(expected)


def shown_answers(held: HeldOut, base: list[str], adapted: list[str]) -> tuple[Answer, ...]:
    """A few for the report, in the order of the held-out rows; none if nothing was asked."""
    if not base:
        return ()
    rows = zip(held.questions, held.expected, base, adapted, strict=True)
    return tuple(
        Answer(prompt=q, expected=e, base=b, adapted=a)
        for q, e, b, a in list(rows)[:_SHOWN_ANSWERS]
    )


def _general_rows(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The embedded base's own kind of text, every token with a loss."""
    texts = [json.loads(line)["text"] for line in GENERAL_FILE.read_text("utf-8").splitlines()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": ids, "seq_lengths": [[len(i)] for i in ids]}
    )
