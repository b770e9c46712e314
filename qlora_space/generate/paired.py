"""A base and adapters on it answer the same questions in one batch: rows of one copy of the base.

The first row of a question runs without an adapter, each other one with its own, so all stream together and share every
base weight by construction.
"""

import hashlib
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qlora_space.core.comparison import (
    PANES,
    Answered,
    Chunk,
    ComparedRow,
    Done,
    PaneAnswer,
    Question,
    Sampling,
    TokenOdds,
)
from qlora_space.generate.answer_text import AnswerText
from qlora_space.generate.answers import eos_token_ids
from qlora_space.generate.engine import Ask, Token, tolerance
from qlora_space.generate.likelihood import Scored, score_texts
from qlora_space.generate.pane_rows import EngineRows, PaneRows, PassRows, at_strength, is_int8
from qlora_space.generate.row_adapters import Unsupported

log = logging.getLogger(__name__)
_SPARE_TOKENS = 16
_LEAST_NATS = -1000.0
_TIE_NATS = 0.1  # closer than that, rounding in 16 bits decides
_INT8_TOLERANCE = 0.5  # nats: LLM.int8 takes outlier columns over all tokens of a pass


@dataclass(frozen=True)
class Prompted:
    """A question with its prompt for each pane, as token ids, the base's first."""

    question: Question
    prompts: tuple[list[int], ...]


class PairedGenerator:
    """stop_token_ids: ends of the trained answers, in addition to those of the base and the tokenizer.

    adapters: names in the model; default: the active one.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int] = (),
        adapters: Sequence[str] = (),
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._adapters = tuple(adapters) or (str(model.active_adapter),)
        self._eos_ids = eos_token_ids(model.get_base_model(), tokenizer) | set(stop_token_ids)
        self._rows: PaneRows
        try:
            self._rows = EngineRows(model, self._eos_ids, self._adapters)
        except Unsupported as why:
            self._use_passes(why)

    def _use_passes(self, why: Unsupported) -> None:
        log.info("Compared by the model's own passes: %s.", why)
        self._rows = PassRows(self._model, self._eos_ids, self._adapters)

    @torch.inference_mode()
    def generate(
        self, asked: Sequence[Prompted], sampling: Sampling, strength: float = 1.0
    ) -> Iterator[Chunk | Answered | Done]:
        """Yield Chunks of all answers to the only question, or of several how many are Answered, then Done."""
        started = time.monotonic()
        limits = [self._limit(each.question, sampling, is_one=len(asked) == 1) for each in asked]
        asks = [
            a for each, s in zip(asked, limits, strict=True) for a in self._asks(each, s, strength)
        ]
        texts = [AnswerText(self._tokenizer) for _ in asks]
        yield from self._write(asks, texts, is_streamed=len(asked) == 1)
        seconds = time.monotonic() - started
        likelihoods = _Likelihoods(self._model, self._tokenizer, self._adapters, strength)
        rows, is_base = likelihoods.rows(asked, texts, _tolerance(self._model))
        alone = self._rows.base_alone(asks[: len(asked[0].prompts)])
        seen = self._first_base_logits(asks, len(asked[0].prompts))
        yield Done(
            rows=tuple(rows),
            base_fingerprint=_fingerprint(seen)[:16],
            same_base=_fingerprint(seen) == _fingerprint(alone) and is_base,
            prompt_tokens=len(asked[0].prompts[0]),
            seconds=round(seconds, 3),
            tokens_per_second=round(sum(len(t.ids) for t in texts) / seconds, 1),
        )

    def _limit(self, question: Question, sampling: Sampling, *, is_one: bool) -> Sampling:
        """Of many questions an answer is cut at twice the length of the expected one: it will not become it."""
        if is_one or not question.expected:
            return sampling
        expected = len(self._tokenizer(question.expected, add_special_tokens=False)["input_ids"])
        longest = min(sampling.max_new_tokens, 2 * expected + _SPARE_TOKENS)
        return sampling.model_copy(update={"max_new_tokens": longest})

    def _asks(self, asked: Prompted, sampling: Sampling, strength: float) -> list[Ask]:
        """The base's first; each other one has its own adapter alone."""
        num = len(self._adapters)
        strengths = [(0.0,) * num]
        strengths += [tuple(strength if j == i else 0.0 for j in range(num)) for i in range(num)]
        return [
            Ask(prompt, sampling.max_new_tokens, each, sampling)
            for prompt, each in zip(asked.prompts, strengths, strict=True)
        ]

    def _write(
        self, asks: list[Ask], texts: list[AnswerText], *, is_streamed: bool
    ) -> Iterator[Chunk | Answered]:
        num_panes, num_done = 1 + len(self._adapters), 0
        total = len(asks) // num_panes
        for tokens in self._tokens(asks):
            for token in tokens:
                new = texts[token.ask].add(token, is_end=token.id in self._eos_ids)
                if new and is_streamed:
                    yield Chunk(pane=PANES[token.ask], text=new)
            done = sum(
                t.is_ended or len(t.ids) == a.max_new_tokens
                for t, a in zip(texts, asks, strict=True)
            )
            if not is_streamed and done // num_panes > num_done:
                num_done = done // num_panes
                yield Answered(done=num_done, total=total)
        for number, text in enumerate(texts):
            if (rest := text.rest()) and is_streamed:
                yield Chunk(pane=PANES[number], text=rest)

    def _tokens(self, asks: list[Ask]) -> Iterator[list[Token]]:
        try:
            yield from self._rows.stream(asks)
        except Unsupported as why:  # raised before the first token
            self._use_passes(why)
            yield from self._rows.stream(asks)

    def _first_base_logits(self, asks: list[Ask], num_panes: int) -> torch.Tensor:
        """Of a batch that holds the panes of the first question alone."""
        if len(asks) > num_panes:
            first = [Ask(a.prompt, 1, a.strength, a.sampling) for a in asks[:num_panes]]
            for _ in self._rows.stream(first):
                pass
        return self._rows.base_logits


class _Likelihoods:
    """What was answered, and what was expected, under the base and under the adapter of each pane."""

    def __init__(
        self, model: PeftModel, tokenizer: Any, adapters: Sequence[str], strength: float
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._adapters, self._strength = tuple(adapters), strength

    def rows(
        self, asked: Sequence[Prompted], texts: Sequence[AnswerText], tolerance_nats: float
    ) -> tuple[list[ComparedRow], bool]:
        """The rows, and whether the base's answers are as likely under the base alone as when they were written."""
        num = 1 + len(self._adapters)
        by_pane = [list(texts[pane::num]) for pane in range(num)]
        under_base = self._answers_under_base(asked, by_pane)
        is_base = _is_base(by_pane[0], under_base[0], is_one=len(asked) == 1, most=tolerance_nats)
        expected = [self._expected(asked, pane) for pane in range(num)]
        rows = []
        for i, each in enumerate(asked):
            answers = [
                self._answer(by_pane[pane][i], under_base[pane][i], each.question, pane)
                for pane in range(num)
            ]
            answers = [
                a.model_copy(update={"expected_log_prob": e[i]})
                for a, e in zip(answers, expected, strict=True)
            ]
            rows.append(ComparedRow(**dict(each.question), answers=tuple(answers)))
        return rows, is_base

    def _answers_under_base(
        self, asked: Sequence[Prompted], by_pane: list[list[AnswerText]]
    ) -> list[list[Scored]]:
        pairs = [
            (each.prompts[pane], text.ids)
            for pane, texts in enumerate(by_pane)
            for each, text in zip(asked, texts, strict=True)
        ]
        with self._model.disable_adapter():
            scored = score_texts(self._model, pairs)
        return [scored[i : i + len(asked)] for i in range(0, len(scored), len(asked))]

    def _expected(self, asked: Sequence[Prompted], pane: int) -> list[float | None]:
        """Nats per token of each expected answer in that pane; None where nothing is expected."""
        texts = [each.question.expected for each in asked]
        ids = [self._tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        known = [i for i, tokens in enumerate(ids) if tokens]
        pairs = [(asked[i].prompts[pane], ids[i]) for i in known]
        if pane and self._strength:
            with at_strength(self._model, self._strength, self._adapters[pane - 1]):
                scored = score_texts(self._model, pairs)
        else:
            with self._model.disable_adapter():
                scored = score_texts(self._model, pairs)
        found: list[float | None] = [None] * len(asked)
        for i, each in zip(known, scored, strict=True):
            found[i] = _finite(statistics.fmean(each.log_probs))
        return found

    def _answer(self, text: AnswerText, base: Scored, question: Question, pane: int) -> PaneAnswer:
        odds = []
        for at, token in enumerate(text.tokens if pane else ()):
            is_other = base.behind[at] > _TIE_NATS
            rival = str(self._tokenizer.decode([base.likeliest[at]])) if is_other else ""
            values = {"base": _finite(base.log_probs[at]), "adapted": _finite(token.log_prob)}
            odds.append(TokenOdds(text=text.pieces[at], rival=rival, **values))
        return PaneAnswer(text=text.text, tokens=tuple(odds))


def _is_base(
    texts: Sequence[AnswerText], alone: Sequence[Scored], *, is_one: bool, most: float
) -> bool:
    """Of one answer the largest difference counts; of many the mean of each, since rounding has more tries."""
    for text, scored in zip(texts, alone, strict=True):
        off = [abs(t.log_prob - p) for t, p in zip(text.tokens, scored.log_probs, strict=True)]
        if off and (max(off) if is_one else statistics.fmean(off)) > most:
            return False
    return True


def _finite(log_prob: float) -> float:
    """Of a model that is not sound it is no number, or not finite, and its answers are shown all the same."""
    return max(log_prob, _LEAST_NATS) if log_prob == log_prob else _LEAST_NATS


def _tolerance(model: PeftModel) -> float:
    base: Any = model.get_base_model()
    return _INT8_TOLERANCE if is_int8(base) else tolerance(base.dtype)


def _fingerprint(logits: torch.Tensor) -> str:
    return hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()
