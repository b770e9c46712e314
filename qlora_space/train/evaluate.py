"""How good the model is on held-out rows: loss, answers, samples, and what was forgotten."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Metric, Sample
from qlora_space.core.intervals import MIN_ROWS
from qlora_space.core.wording import percent
from qlora_space.generate import answer_batch
from qlora_space.model import max_rows
from qlora_space.plan.eval_cost import LOSS_ROWS_AT_ONCE, SAMPLE_TOKENS
from qlora_space.runs import Answer
from qlora_space.train.base_results import BaseResults, answer_key, loss_key
from qlora_space.train.batches import TrainingRows, row_lengths
from qlora_space.train.context import RunContext
from qlora_space.train.guards import Unsound
from qlora_space.train.held_out import HeldOut
from qlora_space.train.snapshot import TrainState, untouched_rng
from qlora_space.train.step import Step
from qlora_space.train.time_share import TimeShare

_SHOWN_ANSWERS = 8


@dataclass(frozen=True)
class Losses:
    """Of each row, in order: the sum in nats, and the trained tokens that it is over."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per trained token."""
        return math.fsum(self.sums) / max(sum(self.tokens), 1)


@dataclass(frozen=True)
class Measured:
    """Base or trained model at the end. Answers are to the first prompts; none where they were not asked for."""

    heldout: Losses | None
    general: Losses | None
    answers: tuple[str, ...]
    general_answers: tuple[str, ...] = ()  # to the first general questions


class Evaluator:
    """Evaluates the model while it is trained and at the end. Nothing here changes what is trained."""

    def __init__(
        self,
        context: RunContext,
        state: TrainState,
        step: Step,
        rows: TrainingRows,
        tokenizer: PreTrainedTokenizerBase,
        held: HeldOut,
        known: BaseResults,
    ) -> None:
        self._context, self._state, self._step, self._rows = context, state, step, rows
        self._tokenizer, self._held, self._known = tokenizer, held, known
        self._losses: dict[int, Losses] = {}  # of the held-out rows, by step
        self.time = TimeShare(context.plan.eval_share)

    def evaluate_if_due(self) -> None:
        """Held-out loss into `state.progress` and a few sample answers, every `eval_steps` and at the end; samples
        alone when somebody asked for them. Raises Unsound, or ModelError if the base's own loss is not finite."""
        if self._held.rows is None:
            return
        progress, step = self._state.progress, self._state.progress.step
        is_due = step % self._context.plan.eval_steps == 0 or step == self._state.total_steps
        if is_due and step not in progress.eval_losses:
            with untouched_rng(), self.time.counted():
                loss = self._evaluate_loss(self._held.rows, step)
                self._sample(step)
            _require_finite(loss, step)
            self._state.progress = progress.after_evaluation(loss)
        elif self._context.take_request("sample"):
            with untouched_rng():
                self._sample(step)

    def measure_trained(self, step: int, *, with_answers: bool) -> Measured:
        """The adapter of this step, which the model has now. Fewer answers than planned where they take longer."""
        held = self._held
        asked, rows = held.general_prompts if with_answers else (), slice(held.num_scored)
        scored = held.prompts[rows] if with_answers else ()
        with self.time.counted():
            known = self._answers_in_time("general questions are asked", asked, held.general_limits)
            answers = self._answers_in_time("answers are scored", scored, held.limits[rows])
            heldout = self._evaluated(step) or (self.losses(held.rows) if held.rows else None)
            general = self.losses(held.general) if held.general else None
        return Measured(heldout, general, tuple(answers), tuple(known))

    def measure_base(self, trained: Measured) -> Measured:
        """The base without the adapter, with as many answers as the trained model gave."""
        held, rows = self._held, slice(len(trained.answers))
        asked = slice(len(trained.general_answers))
        with self.time.counted():
            known = self._base_answers(held.general_prompts[asked], held.general_limits[asked])
            answers = self._base_answers(held.prompts[rows], held.limits[rows])
            heldout = self._base_losses(held.rows) if held.rows else None
            general = self._base_losses(held.general) if held.general else None
        self._known.save()
        return Measured(heldout, general, tuple(answers), tuple(known))

    def _evaluated(self, step: int) -> Losses | None:
        """Of this attempt's evaluation of the step, unless a rollback has undone it."""
        losses = self._losses.get(step)
        has_stayed = losses and self._state.progress.eval_losses.get(step) == losses.mean
        return losses if has_stayed else None

    def _answers_in_time(
        self, what: str, prompts: Sequence[list[int]], limits: Sequence[int]
    ) -> list[str]:
        """A first few for how long they take, then as many as are planned or fit. The base's take as long again."""
        count, first = len(prompts), min(MIN_ROWS, len(prompts))
        if not count:
            return []
        started_at = time.monotonic()
        answers = self._answers(prompts[:first], limits[:first])
        seconds = max(time.monotonic() - started_at, 1e-9)
        models = 1 if self._knows_answers(prompts, limits) else 2
        left = self.time.left_seconds(self._state.progress.train_seconds) - (models - 1) * seconds
        fitting = first + max(0, int(left / models * first / seconds))
        if fitting < count:
            share = percent(self._context.plan.eval_share)
            text = f"{fitting:,} {what}, not {count:,}: more would take over {share} of the time."
            self._context.note(text)
        rest = slice(first, min(count, fitting))
        if prompts[rest]:
            answers += self._answers(prompts[rest], limits[rest])
        return answers

    def _knows_answers(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> bool:
        keys = map(self._answer_key, prompts, limits)
        return all(self._known.answer(key) is not None for key in keys)

    def _answer_key(self, prompt: Sequence[int], limit: int) -> str:
        return answer_key(prompt, limit, self._held.stop_token_ids)

    def _base_answers(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[str]:
        """Those that are not known are written, and known from then on."""
        keys = list(map(self._answer_key, prompts, limits))
        new = [i for i, key in enumerate(keys) if self._known.answer(key) is None]
        if new:
            with self._state.model.disable_adapter():
                texts = self._answers([prompts[i] for i in new], [limits[i] for i in new])
            for i, text in zip(new, texts, strict=True):
                self._known.add(keys[i], text)
        return [self._known.answer(key) or "" for key in keys]

    def _base_losses(self, rows: Dataset) -> Losses:
        keys = [loss_key(row) for row in rows]  # type: ignore[arg-type]
        found = [self._known.loss(key) for key in keys]
        if None in found:
            with self._state.model.disable_adapter():
                losses = self.losses(rows)
            found = list(zip(losses.sums, losses.tokens, strict=True))
            for key, loss in zip(keys, found, strict=True):
                self._known.add(key, loss)
        return Losses(tuple(loss[0] for loss in found), tuple(loss[1] for loss in found))  # type: ignore[index]

    @property
    def _is_base_yet(self) -> bool:
        """Whether the adapter adds nothing: a new one's B is 0 before the first step."""
        if self._state.progress.step or self._context.plan.use_dora:
            return False
        weights = self._state.model.named_parameters()
        return not any(bool(weight.any()) for name, weight in weights if ".lora_B." in name)

    def losses(self, rows: Dataset) -> Losses:
        """Of every row, exact whatever the batch size."""
        model, device = self._state.model, self._state.accelerator.device
        sums, tokens = [0.0] * len(rows), [0] * len(rows)
        was_training = model.training
        model.eval()
        try:
            for chosen in self._batches(rows):
                self._context.check_in()
                batch = self._rows.collate([rows[i] for i in chosen])  # type: ignore[arg-type]
                inputs = {name: t.to(device) for name, t in batch.items()}
                with torch.no_grad(), self._inference():
                    output = model(**inputs, fused_lm_head=True)
                found = (
                    output.log_probs.double().sum(-1).tolist(),
                    output.label_mask.sum(-1).tolist(),
                )
                for i, log_prob, count in zip(chosen, *found, strict=True):
                    sums[i], tokens[i] = -log_prob, count
        finally:
            model.train(was_training)
        return Losses(tuple(sums), tuple(tokens))

    def shown_answers(self, base: Sequence[str], adapted: Sequence[str]) -> tuple[Answer, ...]:
        """A few for the report, in the order of the held-out rows; none if there are no answers."""
        if not base:
            return ()
        rows = zip(self._held.questions, self._held.expected, base, adapted, strict=False)
        return tuple(
            Answer(prompt=q, expected=e, base=b, adapted=a)
            for q, e, b, a in list(rows)[:_SHOWN_ANSWERS]
        )

    def _evaluate_loss(self, rows: Dataset, step: int) -> float:
        self._state.wait()
        self._context.phase("evaluate", 0, 1)
        losses = self._base_losses(rows) if self._is_base_yet else self.losses(rows)
        self._losses[step] = losses
        loss, total = losses.mean, self._state.total_steps
        if math.isfinite(loss):
            self._context.emit(Metric(step=step, total_steps=total, values={"eval_loss": loss}))
        self._context.phase("train", step, total)
        return loss

    def _sample(self, step: int) -> None:
        """Answers to the first held-out prompts, as the model gives them now."""
        held, count = self._held, min(self._context.plan.num_samples, len(self._held.prompts))
        if not count:
            return
        self._state.wait()
        limits = [min(limit, SAMPLE_TOKENS) for limit in held.limits[:count]]
        write = self._base_answers if self._is_base_yet else self._answers
        texts = write(held.prompts[:count], limits)
        for question, expected, text in zip(held.questions, held.expected, texts, strict=False):
            sample = Sample(step=step, prompt=question, expected=expected, text=text)
            self._context.emit(sample)

    def _answers(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]:
        with self._inference():
            return answer_batch(
                self._state.model,
                self._tokenizer,
                prompts,
                max_new_tokens,
                self._held.stop_token_ids,
                self._between_tokens,
            )

    def _between_tokens(self) -> None:
        """A base that is read over the bus takes seconds a token, and silence would mean that the run hangs."""
        if self._context.plan.cpu_offload:
            self._context.heartbeat()

    def _inference(self) -> AbstractContextManager[None]:
        """The precision of training. CUDA graphs of the fast step hold memory that is needed now."""
        self._step.release()
        return self._state.accelerator.autocast()

    def _batches(self, rows: Dataset) -> Iterator[list[int]]:
        """Indices of rows of like length together, so that little is padding; longest first. On a GPU, no more tokens
        at once than a micro-batch of training has, which are known to fit."""
        model, lengths = self._state.model, row_lengths(rows)
        most = LOSS_ROWS_AT_ONCE[self._context.plan.hardware.device]
        trained_tokens = self._state.progress.micro_batch * self._rows.longest_tokens
        most_tokens = trained_tokens if self._context.on_gpu else sys.maxsize
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        while order:
            longest = lengths[order[-1]]
            count = max(1, min(most, most_tokens // longest, max_rows(model, longest)))
            order, chosen = order[:-count], order[-count:]
            yield chosen


def _require_finite(loss: float, step: int) -> None:
    if math.isfinite(loss):
        return
    if step:
        raise Unsound(f"the held-out loss is {loss}")
    raise ModelError(
        f"The loss of the base on the held-out rows is {loss}, before any training.",
        "Choose another base, or other rows to hold out.",
    )
