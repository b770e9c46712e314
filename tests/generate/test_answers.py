"""Answers to many prompts at once: in their order, and no more rows at once than attention has room for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.generate import answer_batch

NEW_TOKENS = 4


def loaded(attention: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        BASE_FOLDER, dtype=torch.float32, attn_implementation=attention
    ).eval()


def passes_of(model: PreTrainedModel, prompts: list[list[int]]) -> tuple[list[str], list[tuple]]:
    """The answers, and (rows, tokens) of every first pass over prompts."""
    seen: list[tuple] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, args, __: seen.append(tuple(args[0].shape))
    )
    answers = answer_batch(model, AutoTokenizer.from_pretrained(BASE_FOLDER), prompts, NEW_TOKENS)
    hook.remove()
    passes = [shape for shape in seen if shape[1] > 1]
    return answers, passes[5:]  # the engine's proof: one of two short rows, four of one row


def test_eager_attention_never_holds_more_scores_than_the_plan_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same answers in the same order, in more passes."""
    monkeypatch.setattr("qlora_space.lowbit.architecture.EAGER_SCORES_AT_ONCE", 80**2)
    prompts = [list(range(10, 10 + n)) for n in (70, 12, 33, 150, 12, 70)]
    usual, at_once = passes_of(loaded("sdpa"), prompts)
    eager, batches = passes_of(loaded("eager"), prompts)
    assert eager == usual
    assert [rows for rows, _ in at_once] == [len(prompts)]
    assert len(batches) > 2
    for rows, tokens in batches:
        assert rows == 1 or rows * tokens**2 <= 80**2
