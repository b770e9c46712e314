"""Adapters on some layers, rsLoRA and DoRA: trained, compared, loaded by peft alone, and named in what is published."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_space.core.errors import RequestError
from qlora_space.core.targets import name_behind_layer
from qlora_space.experts import linear_targets, packed_experts
from qlora_space.lowbit.text_model import adaptable_linears
from qlora_space.model import add_adapter, load_base
from qlora_space.model.loaded import loaded_base
from qlora_space.plan.memory import adapter_parameters
from tests.base_trial import plan_of, try_base
from tests.experts import tiny_mixtures
from tests.model.test_families import TRAINED, checkpoint, facts_of

Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return lambda name: tiny_mixtures.build(name, tmp_path_factory.mktemp("mixture") / name)


@pytest.mark.parametrize("name", TRAINED)
def test_the_plan_knows_the_names_of_the_layers(name: str) -> None:
    assert {one.name for one in facts_of(name).linears} == adapted_names(checkpoint(name))


@pytest.mark.parametrize("name", tiny_mixtures.FAMILIES)
def test_the_plan_knows_which_layers_of_a_mixture_are_adapted(name: str, mixture: Build) -> None:
    """peft leaves alone what has the name of an expert's matrix."""
    folder = mixture(name)
    assert {one.name for one in plan_of(folder).base.linears} == adapted_names(folder)


def adapted_names(folder: Path) -> set[str]:
    model = load_base(folder, 4, "cpu")
    names = adaptable_linears(model)
    if any(True for _ in packed_experts(model)):
        names = {n for n in names if n.rpartition(".")[2] in linear_targets(model)}
    return {name_behind_layer(n) for n in names}


@pytest.mark.parametrize(
    ("family", "target", "number"),
    [
        ("qwen3", "attention", 8),
        ("qwen3", "q_proj,v_proj", 4),
        ("gpt2", "mlp", 4),  # c_proj is in attention, too
        ("gpt2", "attn.c_proj", 2),
        ("qwen3.5", "mlp", 12),
        ("bamba", "attention", 5),  # without Mamba's out_proj
        ("falcon", "mlp", 4),
    ],
)
def test_exactly_the_layers_that_are_meant_are_adapted(family, target, number) -> None:
    plan = plan_of(checkpoint(family), target_modules=target)
    loaded = loaded_base(add_adapter(load_base(checkpoint(family), 4, "cpu"), plan))
    assert loaded.adapters == number
    planned = adapter_parameters(plan.base, plan.r, 0, target)
    assert loaded.trained == planned < adapter_parameters(plan.base, plan.r)


def test_a_name_that_only_the_file_has_is_refused_when_the_base_is_loaded() -> None:
    plan = plan_of(checkpoint("qwen3")).model_copy(update={"target_modules": "qkv_proj"})
    with pytest.raises(RequestError, match="names qkv_proj"):
        add_adapter(load_base(checkpoint("qwen3"), 4, "cpu"), plan)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"target_modules": "mlp"}),
    ("qwen3", {"target_modules": "q_proj,v_proj", "use_rslora": True}),
    ("qwen3", {"use_dora": True}),
    ("qwen3", {"bits": 16, "use_dora": True, "target_modules": "attention"}),
    ("qwen3", {"bits": 2, "group_size": 32, "target_modules": "attention", "use_rslora": True}),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "asked"), CASES)
def test_every_choice_is_trained_compared_and_loaded_elsewhere(family, asked, tmp_path) -> None:
    trial = try_base(checkpoint(family), tmp_path, **asked)
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)
    config = adapter_config(tmp_path)
    assert config["use_rslora"] is asked.get("use_rslora", False)
    assert config["use_dora"] is asked.get("use_dora", False)


@pytest.mark.timeout(300)
def test_only_experts_are_adapted_where_the_mlp_is_meant(mixture: Build, tmp_path: Path) -> None:
    """All at the same scale, which is the one that vLLM computes from r and alpha alone."""
    folder = mixture("qwen3-moe")
    trial = try_base(folder, tmp_path, target_modules="mlp", use_rslora=True)
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)
    assert trial.plan is not None
    plan, config = trial.plan, adapter_config(tmp_path)
    assert config["target_modules"] == []
    assert len(config["target_parameters"]) == 2
    for alpha in config["alpha_pattern"].values():
        assert alpha / math.sqrt(plan.expert_r) == pytest.approx(plan.lora_scale)


def test_the_scale_is_that_of_the_plan() -> None:
    for asked in ({}, {"use_rslora": True}, {"lora_alpha": 3, "use_rslora": True}):
        plan = plan_of(checkpoint("qwen3"), **asked)
        model: Any = add_adapter(load_base(checkpoint("qwen3"), 4, "cpu"), plan)
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        assert layer.scaling["default"] == pytest.approx(plan.lora_scale)


def test_an_adapter_with_dora_starts_as_the_base() -> None:
    plan = plan_of(checkpoint("qwen3"), use_dora=True)
    base = load_base(checkpoint("qwen3"), 4, "cpu")
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits.float()
        after = add_adapter(base, plan).eval()(input_ids=ids).logits.float()
    assert (after - before).norm() < 1e-2 * before.norm()


def adapter_config(home: Path) -> dict[str, Any]:
    (file,) = home.glob("runs/*/adapter/adapter_config.json")
    return json.loads(file.read_text())
