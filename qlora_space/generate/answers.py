"""Greedy generation for many prompts at once, for samples and exact match: by the engine, or where it does not know the
model by the model's own `generate`."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qlora_space.generate.engine import Ask, Engine
from qlora_space.generate.row_adapters import Unsupported
from qlora_space.model import max_rows
from qlora_space.plan.eval_cost import ANSWERS_AT_ONCE

log = logging.getLogger(__name__)
_TOKENS_AT_ONCE = 16_384  # 2.3 GiB of keys and values in an 8B


def eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends an answer: those of the generation config, and the tokenizer's."""
    configured: Any = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    own: Any = tokenizer.eos_token_id
    return {i for i in (*ids, own) if i is not None}


@torch.inference_mode()
def answer_batch(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    stop_token_ids: Sequence[int] = (),
    between_tokens: Callable[[], None] = lambda: None,
) -> list[str]:
    """Greedy continuations as text without special tokens, in the order of `prompts` (token ids).

    max_new_tokens: of every answer, or of each.
    stop_token_ids: ends of the trained answers, in addition to those of the base and the tokenizer. between_tokens:
    called after every token; an exception in it ends the generation.
    """
    eos_ids = eos_token_ids(model, tokenizer) | set(stop_token_ids)
    is_one = isinstance(max_new_tokens, int)
    limits = [max_new_tokens] * len(prompts) if is_one else list(max_new_tokens)
    try:
        engine = Engine(model, eos_ids, active_adapters(model))
        return _answers_of(engine, tokenizer, prompts, limits, between_tokens)
    except Unsupported as why:
        log.info("Answers by the model's own generate: %s.", why)
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + limits[i])
    answers = [""] * len(prompts)
    while order:
        longest = len(prompts[order[-1]]) + limits[order[-1]]
        count = max(1, min(ANSWERS_AT_ONCE, _TOKENS_AT_ONCE // longest, max_rows(model, longest)))
        order, rows = order[:-count], order[-count:]
        batch = [prompts[i] for i in rows]
        most = [limits[i] for i in rows]
        texts = _answer_rows(model, tokenizer, batch, most, eos_ids, between_tokens)
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text
    model.train(was_training)
    return answers


def active_adapters(model: Any) -> list[str]:
    """Names of the adapters that a pass of the model has now: none where they are disabled."""
    if not isinstance(model, PeftModel):
        return []
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    return [] if any(layer.disable_adapters for layer in layers) else model.active_adapters


def _answers_of(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    between_tokens: Callable[[], None],
) -> list[str]:
    ids: list[list[int]] = [[] for _ in prompts]
    for tokens in engine.stream(list(map(Ask, prompts, limits))):
        for token in tokens:
            ids[token.ask].append(token.id)
        between_tokens()
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


class _TokenCallback(StoppingCriteria):
    """Never stops, but calls back: a base in host memory may take seconds a token, and may be interrupted."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        self._call()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _answer_rows(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    limits: list[int],
    eos_ids: set[int],
    between_tokens: Callable[[], None],
) -> list[str]:
    width = max(len(p) for p in prompts)
    pad = tokenizer.pad_token_id or 0
    input_ids = torch.tensor(
        [[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device
    )
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device
    )
    config = GenerationConfig(
        max_new_tokens=max(limits),
        do_sample=False,
        eos_token_id=sorted(eos_ids),
        pad_token_id=pad,
    )
    generator: Any = model
    output = generator.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_TokenCallback(between_tokens)]),
    )
    answers = [row[:limit] for row, limit in zip(output[:, width:], limits, strict=True)]
    return tokenizer.batch_decode(answers, skip_special_tokens=True)
