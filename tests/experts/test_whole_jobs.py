"""Mixtures of every family at 4 bits: planned, trained, evaluated, compared, and loaded by peft alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qlora_space.core.errors import ModelError, RequestError
from qlora_space.hub import model_facts
from qlora_space.model import add_adapter
from qlora_space.model.base import load_base
from qlora_space.model.load import load_frozen_base
from qlora_space.model.loaded import loaded_base, require_as_planned
from tests.base_trial import logits_of, plan_of, try_base
from tests.experts.tiny_mixtures import FAMILIES, in_fp8

Checkpoint = Callable[[str], Path]
_QUICK = ("qwen3-moe", "gpt-oss")


def _slow_but(quick: tuple[str, ...]) -> list:
    others = (f for f in FAMILIES if f not in quick)
    return [*quick, *(pytest.param(f, marks=pytest.mark.slow) for f in others)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", _slow_but(_QUICK))
def test_everything_that_one_does_with_a_base(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    trial = try_base(checkpoint(family), tmp_path)
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)
    assert trial.plan is not None
    assert trial.plan.expert_r == 2  # of 4, shared by two experts a token


def test_a_mixture_in_fp8_is_packed_in_4_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Read layer by layer, expert by expert. transformers' own way with FP8 wants a GPU, so the reload is left out."""
    folder = in_fp8(checkpoint("qwen3-moe"), tmp_path / "fp8")
    trial = try_base(folder, tmp_path)
    assert trial.done[:3] == ["plan", "train", "compare"], (trial.refused, trial.crashed)
    plain = logits_of(load_base(checkpoint("qwen3-moe"), 4, "cpu"))
    got = logits_of(load_frozen_base(plan_of(folder).base, folder, 4, "cpu"))
    assert (got - plain).norm() < 0.2 * plain.norm()  # FP8 has three bits behind the point


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_is_what_the_files_say(family: str, checkpoint: Checkpoint) -> None:
    """Exactly the quantized weights, all weights but for rows of small numbers, and the adapter's size."""
    folder = checkpoint(family)
    facts = model_facts(str(folder), None, None)
    plan = plan_of(folder)
    model = add_adapter(load_base(folder, 4, "cpu"), plan)
    loaded = loaded_base(model)
    require_as_planned(loaded, facts, 4)
    assert loaded.quantized == facts.linear_parameters
    assert loaded.parameters == pytest.approx(facts.parameters, rel=0.015)
    on_experts = sum(
        p.numel() for n, p in model.named_parameters() if ".experts." in n and p.requires_grad
    )
    assert on_experts == plan.expert_r * facts.expert_sides
    assert facts.experts_per_token == 2
    shape = FAMILIES[family][1]
    assert facts.expert_intermediate_size in (
        shape.get("moe_intermediate_size"),
        shape["intermediate_size"],
    )


def test_what_a_mixture_cannot_have_is_refused_before_start(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen3-moe")
    for options in ({"bits": 8}, {"heal": True}, {"calibrated": True}, {"mean_bits": 2.5}):
        with pytest.raises(RequestError, match="is a mixture of experts, for which there is no"):
            plan_of(folder, **options)
    assert plan_of(folder, bits=16).expert_r == 0
    with pytest.raises(RequestError, match="which adapters on experts do not have"):
        plan_of(folder, lora_dropout=0.1, expert_r=1)
    assert plan_of(folder, lora_dropout=0.1).expert_r == 0


def test_in_16_bits_experts_are_adapted_by_peft_if_one_asks(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen3-moe")
    plan = plan_of(folder, bits=16, expert_r=1)
    model = add_adapter(load_base(folder, 16, "cpu"), plan)
    assert any(".experts." in n for n, p in model.named_parameters() if p.requires_grad)
    assert torch.isfinite(model(torch.arange(9)[None]).logits).all()


def test_experts_left_in_16_bits_stop_the_run(checkpoint: Checkpoint) -> None:
    """As they would be without experts/loading.py."""
    folder = checkpoint("qwen3-moe")
    facts = model_facts(str(folder), None, None)
    model = add_adapter(load_base(folder, 16, "cpu"), plan_of(folder, bits=16))
    with pytest.raises(ModelError, match="did not come out as planned"):
        require_as_planned(loaded_base(model), facts, 4)
