"""How long looking at held-out rows takes: loss and a few answers during the run, and both models at its end."""

import math

from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.plan.speed import forward_seconds

# What the worker goes by, too.
LOSS_ROWS_AT_ONCE = {"cuda": 8, "cpu": 16}
ANSWERS_AT_ONCE = 32
SAMPLE_TOKENS = 128
EXACT_MATCH_ROWS = 200
EXACT_MATCH_ROWS_OFFLOADED = 16  # every token reads the base over the bus
LONGEST_EXACT_ANSWER_TOKENS = 64  # longer answers are never word for word the same
SPARE_TOKENS = 8
LONGEST_ANSWER_TOKENS = 512


def eval_seconds(  # noqa: PLR0913 - each argument is one choice of the plan
    model: ModelFacts,
    hardware: Hardware,
    dataset: DatasetFacts,
    *,
    max_length: int,
    num_eval_rows: int,
    looks: int,
    num_samples: int,
    cpu_offload: bool,
) -> float:
    """Of `looks` looks, and of measuring base and trained model when all is done."""
    if not num_eval_rows:
        return 0.0
    lengths = dataset.lengths
    # A text is cut into pieces, which are all read; of a longer row only its beginning is.
    mean = lengths.mean if dataset.format == "text" else min(lengths.mean, max_length)
    prompt = min(lengths.mean * (1 - lengths.trained_fraction), max_length)
    longest = _longest_answer(lengths)
    matched = _num_matched(dataset, num_eval_rows, cpu_offload)

    def look(answers: int, answer_tokens: int) -> float:
        loss = forward_seconds(
            model,
            hardware,
            tokens=num_eval_rows * mean,
            passes=math.ceil(num_eval_rows / LOSS_ROWS_AT_ONCE[hardware.device]),
            cpu_offload=cpu_offload,
        )
        return loss + forward_seconds(
            model,
            hardware,
            tokens=answers * (prompt + answer_tokens),
            passes=math.ceil(answers / ANSWERS_AT_ONCE) * answer_tokens,
            cpu_offload=cpu_offload,
        )

    during = look(min(num_samples, num_eval_rows), min(longest, SAMPLE_TOKENS))
    return looks * during + 2 * look(matched, longest)


def _longest_answer(lengths: TokenLengths) -> int:
    """Tokens, about: what a batch waits for."""
    spoken = math.ceil(lengths.p95 * lengths.trained_fraction)
    return min(spoken + SPARE_TOKENS, LONGEST_ANSWER_TOKENS)


def _num_matched(dataset: DatasetFacts, num_eval_rows: int, cpu_offload: bool) -> int:
    """Rows whose answers are compared word for word: none if they are long, or if all of the text is learned."""
    usual = dataset.lengths.p50 * dataset.lengths.trained_fraction
    if usual > LONGEST_EXACT_ANSWER_TOKENS or dataset.format == "text":
        return 0
    return min(EXACT_MATCH_ROWS_OFFLOADED if cpu_offload else EXACT_MATCH_ROWS, num_eval_rows)
