"""The fast step of mixtures of experts, packed: gradients are those of the plain path, at every policy."""

from pathlib import Path

import pytest

from qlora_space.experts import expert_targets
from qlora_space.fast import ActivationPolicy, attach
from qlora_space.fast.model import build, differences
from qlora_space.hub import model_facts
from qlora_space.plan.fast_memory import layer_shape
from tests.experts.reference import packed_base
from tests.experts.test_adapter import adapted
from tests.experts.tiny_mixtures import build as build_checkpoint

MIXTURES = {"qwen3_moe", "mixtral"}  # their `model_type`


@pytest.fixture(scope="module", params=["qwen3-moe", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(request.param, tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("policy", ActivationPolicy)
def test_gradients_are_those_of_the_plain_path(folder: Path, policy: ActivationPolicy) -> None:
    base = packed_base(folder)
    model = adapted(base, expert_targets(base))
    fast = build(model, policy, on_cpu=True)
    assert fast.layers[0].shape == layer_shape(model_facts(str(folder), None, None))
    loss, gradient = differences(model, fast)
    assert loss < 1e-5
    assert gradient < 1e-4


def test_experts_may_be_without_adapters(folder: Path) -> None:
    base = packed_base(folder)
    model = adapted(base, [])
    step, text = attach(model, on_cpu=True)
    assert step is not None, text
    assert "2 fused layers" in text
