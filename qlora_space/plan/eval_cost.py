"""How long evaluations take: loss and a few answers during the run, answers of base and trained model at its end."""

import math
from dataclasses import dataclass

from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts
from qlora_space.core.general_questions import GENERAL_QUESTIONS
from qlora_space.core.options import Format, Score
from qlora_space.plan.speed import decode_seconds, forward_seconds

# The worker evaluates with these, too.
LOSS_ROWS_AT_ONCE = {"cuda": 8, "cpu": 16}
ANSWERS_AT_ONCE = 32
SAMPLE_TOKENS = 128
MOST_SCORED_ROWS = 200
MOST_SCORED_ROWS_OFFLOADED = 16  # every token reads the base over the bus
LONGEST_EXACT_ANSWER_TOKENS = 64  # longer answers never match word for word
SPARE_TOKENS = 8  # generated beyond the expected answer
LONGEST_ANSWER_TOKENS = 512

_QUESTION_TOKENS = 40  # of a general question in a chat template
MIN_ROWS_TO_HOLD_OUT = 20  # of fewer rows one or two would be a poor measure


FREE_SECONDS = 10.0  # of evaluation however short the run is: a quick run wants its score


def allowed_seconds(eval_share: float, other_seconds: float) -> float:
    """Of evaluation, beside so many seconds of all else in a run."""
    return max(eval_share / (1 - eval_share) * other_seconds, FREE_SECONDS)


@dataclass(frozen=True)
class EvalCost:
    """What the held-out rows of a run cost to evaluate; the report has the losses of the first and last evaluation."""

    model: ModelFacts
    hardware: Hardware
    dataset: DatasetFacts
    max_length: int
    num_eval_rows: int
    num_samples: int
    cpu_offload: bool
    score: Score

    @property
    def most_scored_rows(self) -> int:
        if self.score == "none" or self.dataset.format == Format.TEXT:
            return 0
        most = MOST_SCORED_ROWS_OFFLOADED if self.cpu_offload else MOST_SCORED_ROWS
        return min(most, self.num_eval_rows)

    def evaluation_seconds(self) -> float:
        """Of the loss of all held-out rows and the samples, once."""
        if not self.num_eval_rows:
            return 0.0
        losses = forward_seconds(
            self.model,
            self.hardware,
            tokens=self.num_eval_rows * self._row_tokens,
            passes=math.ceil(self.num_eval_rows / LOSS_ROWS_AT_ONCE[self.hardware.device]),
            cpu_offload=self.cpu_offload,
        )
        num_samples = min(self.num_samples, self.num_eval_rows)
        return losses + self._answers(num_samples, min(self._longest, SAMPLE_TOKENS))

    def answer_seconds(self, num_rows: int) -> float:
        """Of the answers of base and trained model to so many prompts."""
        return 2 * self._answers(num_rows, self._mean)

    def general_seconds(self) -> float:
        """Of the answers of base and trained model to all general questions."""
        num, tokens = len(GENERAL_QUESTIONS), GENERAL_QUESTIONS[0].max_new_tokens
        return 2 * self._decode(num, _QUESTION_TOKENS, tokens)

    def _answers(self, num_rows: int, tokens: float) -> float:
        return self._decode(num_rows, self._prompt_tokens, tokens) if num_rows else 0.0

    def _decode(self, num_rows: int, prompt_tokens: float, tokens: float) -> float:
        passes = max(1.0, num_rows / ANSWERS_AT_ONCE) * tokens
        return decode_seconds(
            self.model,
            self.hardware,
            prompt_tokens=num_rows * prompt_tokens,
            answer_tokens=num_rows * tokens,
            passes=math.ceil(passes),
            cpu_offload=self.cpu_offload,
        )

    @property
    def _row_tokens(self) -> float:
        """Plain text is cut into pieces that are all evaluated, any other row is cut off at max_length."""
        dataset, mean = self.dataset, self.dataset.lengths.mean
        is_text = dataset.format == Format.TEXT
        is_whole = is_text and not holds_out_pieces(dataset.format, dataset.num_rows)
        return mean if is_whole else min(mean, self.max_length)

    @property
    def _prompt_tokens(self) -> float:
        lengths = self.dataset.lengths
        return min(lengths.mean * (1 - lengths.trained_fraction), self.max_length)

    @property
    def _longest(self) -> int:
        """Tokens of the longest answer, estimated where answers were not looked at."""
        lengths, answers = self.dataset.lengths, self.dataset.answers
        expected = answers.p95 if answers else math.ceil(lengths.p95 * lengths.trained_fraction)
        return min(expected + SPARE_TOKENS, LONGEST_ANSWER_TOKENS)

    @property
    def _mean(self) -> float:
        """Tokens of an answer: the base goes on as long as it may, the trained model ends as the data does."""
        lengths, answers = self.dataset.lengths, self.dataset.answers
        usual = answers.p50 if answers else math.ceil(lengths.p50 * lengths.trained_fraction)
        most = (
            self._longest
            if self.score == "number"
            else min(2 * usual + SPARE_TOKENS, self._longest)
        )
        return (min(usual, LONGEST_ANSWER_TOKENS) + most) / 2


def holds_out_pieces(format: str, num_rows: int) -> bool:
    """Whether the last pieces of each text are held out: there are too few texts to hold out whole ones."""
    return format == Format.TEXT and num_rows < MIN_ROWS_TO_HOLD_OUT
