"""Evaluations against the 16-bit model, of the quantized, the repaired and the healed one."""

import copy
import math
from dataclasses import astuple, replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.lowbit import (
    HealRecipe,
    LowBitBase,
    ReferenceEvaluator,
    Windows,
    add_repair,
    heal,
)
from tests.lowbit.conftest import CALIBRATION


def test_a_repair_brings_it_closer_and_a_heal_closer_still(
    windows: Windows, built: LowBitBase
) -> None:
    base = replace(built, model=copy.deepcopy(built.model))
    evaluator = base.evaluator()
    assert evaluator.reference().perplexity > 1
    quantized = evaluator.evaluate(base.model)
    model = add_repair(base)
    repaired = evaluator.evaluate(model)
    assert repaired.kl < quantized.kl
    every = replace(windows, num_calibration=len(windows.ids))
    recipe = HealRecipe(steps=12, tokens_per_step=400, learning_rate=2e-3)
    heal(model, every, base.teacher_states, recipe)
    healed = evaluator.evaluate(model)
    assert healed.kl < 0.9 * repaired.kl
    assert not model.training


def test_the_reference_is_the_whole_16_bit_model(windows: Windows, built: LowBitBase) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    evaluator = ReferenceEvaluator.on_heldout(windows, built.teacher_states, whole)
    own, reference = evaluator.evaluate(whole), evaluator.reference()
    assert own.perplexity == pytest.approx(reference.perplexity, rel=1e-4)
    assert own.kl == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        ids = windows.ids[CALIBRATION:]
        loss = whole(input_ids=ids, labels=ids).loss
    assert reference.perplexity == pytest.approx(float(loss.exp()), rel=1e-3)


def test_an_evaluation_does_not_depend_on_the_tokens_at_once(
    built: LowBitBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = built.evaluator()
    whole = evaluator.reference(), evaluator.evaluate(built.model)
    monkeypatch.setattr("qlora_space.lowbit.evaluate._TOKENS_AT_ONCE", 7)
    pieces = evaluator.reference(), evaluator.evaluate(built.model)
    for one, other in zip(whole, pieces, strict=True):
        assert astuple(one) == pytest.approx(astuple(other), rel=1e-5)


def test_a_base_that_computes_nonsense_is_evaluated_as_not_a_number(built: LowBitBase) -> None:
    base = replace(built, model=copy.deepcopy(built.model))
    with torch.no_grad():
        base.model.model.norm.weight.fill_(float("nan"))
    found = base.evaluator().evaluate(base.model)
    assert math.isnan(found.perplexity)
    assert math.isnan(found.kl)
