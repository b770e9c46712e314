"""The plan of mixtures: memory of real ones from their shapes, the rank on an expert, time by active weights."""

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.experts import SHAPES
from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.expert_tensors import experts_of, experts_per_token
from qlora_space.hub.headers import Tensor, count_weights
from qlora_space.plan.memory import estimate_memory
from qlora_space.plan.mixtures import expert_rank
from qlora_space.plan.speed import seconds_per_step

H200 = Hardware(
    name="NVIDIA H200", device="cuda", memory_gib=139, free_gib=138, cpu_cores=8, disk_free_gib=99
)


def facts_of(shape: str) -> ModelFacts:
    """From the names and shapes of the tensors of a real base; no weight is made."""
    settings: dict[str, Any] = dict(SHAPES[shape])
    config = AutoConfig.for_model(**settings, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = [Tensor(n, "BF16", tuple(t.shape)) for n, t in model.state_dict().items()]
    weights = count_weights(tensors)
    experts = weights.experts
    return ModelFacts(
        id=shape,
        source="hub",
        sha="0",
        architecture="X",
        model_type=settings["model_type"],
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=settings.get("head_dim") or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        tie_word_embeddings=False,
        max_position_embeddings=4096,
        parameters=weights.parameters,
        linear_parameters=weights.linear_parameters,
        linear_sides=weights.linear_sides,
        linears=weights.linears,
        num_experts=experts.per_layer,
        experts_per_token=experts_per_token(settings),
        expert_intermediate_size=experts.parameters // (3 * config.hidden_size * experts.count),
        expert_parameters=experts.parameters,
        expert_sides=experts.sides,
        file_bytes=0,
    )


def parts_of(facts: ModelFacts, expert_r: int = 2, tokens: int = 8192) -> dict[str, float]:
    parts = estimate_memory(
        facts, H200, bits=4, r=16, expert_r=expert_r, tokens_at_once=tokens,
        gradient_checkpointing=True, optim="paged_adamw_8bit", is_fast=False,
    )  # fmt: skip
    return {part.name: part.gib for part in parts}


@pytest.mark.parametrize(
    ("shape", "billions", "active", "loaded_gib"),
    [
        ("qwen3-30b-a3b", 30.5, 2.72, 15.55),
        ("gpt-oss-20b", 20.9, 3.0, 11.7),
        ("mixtral-8x7b", 46.7, 12.6, 22.7),
    ],
)
def test_weights_of_real_mixtures_are_counted_by_parts(
    shape: str, billions: float, active: float, loaded_gib: float
) -> None:
    """Loaded: experts and linears in NF4 with double quantization (4.127 bits), the rest in 16."""
    facts = facts_of(shape)
    assert facts.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert facts.active_parameters / 1e9 == pytest.approx(active, rel=0.05)
    parts = parts_of(facts)
    loaded = parts["experts"] + parts["base weights"] + parts["embeddings and head"]
    assert loaded == pytest.approx(loaded_gib, rel=0.02)
    assert parts["experts"] > 0.8 * loaded or shape == "gpt-oss-20b"


def test_a_step_costs_what_one_token_is_multiplied_with() -> None:
    facts = facts_of("qwen3-30b-a3b")
    dense = facts.model_copy(update={"num_experts": 0, "expert_parameters": 0})
    kwargs: Any = {"tokens": 8192, "batches": 1, "gradient_checkpointing": True, "is_fast": True}
    assert seconds_per_step(facts, H200, **kwargs) < seconds_per_step(dense, H200, **kwargs) / 5


def test_the_rank_on_experts_is_shared_by_the_experts_of_a_token() -> None:
    facts = facts_of("qwen3-30b-a3b")
    assert expert_rank(TrainingRequest(), facts, 16) == 2
    assert expert_rank(TrainingRequest(), facts, 4) == 1
    assert expert_rank(TrainingRequest(expert_r=16), facts, 4) == 16
    assert expert_rank(TrainingRequest(expert_r=0), facts, 16) == 0
    assert expert_rank(TrainingRequest(bits=16), facts, 16) == 0
    more = parts_of(facts, 16)["adapter, gradients, optimizer"]
    assert more > 6 * parts_of(facts, 2)["adapter, gradients, optimizer"]


def tensors(*shapes: tuple[str, tuple[int, ...]]) -> list[Tensor]:
    return [Tensor(name, "BF16", shape) for name, shape in shapes]


def test_experts_one_by_one_and_joined_count_the_same() -> None:
    prefix = "model.layers.{}.mlp"
    single = tensors(
        *(
            (f"{prefix.format(layer)}.experts.{e}.{name}.weight", shape)
            for layer, e, (name, shape) in itertools.product(
                range(2),
                range(4),
                (("gate_proj", (8, 16)), ("up_proj", (8, 16)), ("down_proj", (16, 8))),
            )
        )
    )
    joined = tensors(
        *((f"{prefix.format(i)}.experts.gate_up_proj", (4, 16, 16)) for i in range(2)),
        *((f"{prefix.format(i)}.experts.down_proj", (4, 16, 8)) for i in range(2)),
    )
    router = tensors(("model.layers.0.mlp.gate.weight", (4, 16)))
    shared = tensors(("model.layers.0.mlp.shared_experts.gate_proj.weight", (8, 16)))
    one, all_at_once = (experts_of([*found, *router, *shared]) for found in (single, joined))
    for found in (one, all_at_once):
        assert found.per_layer == 4
        assert found.count == 8
        assert found.parameters == 8 * 3 * 8 * 16
        assert found.sides == 8 * ((16 + 16) + (8 + 16))
        assert found.routers == {"model.layers.0.mlp.gate.weight"}
    counted = count_weights([*single, *router, *shared])
    assert counted.linear_parameters == one.parameters + 8 * 16
    assert counted.linear_sides == 8 + 16


def test_codes_of_mxfp4_count_as_the_weights_they_stand_for() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = tensors(
        (f"{name}_blocks", (4, 128, 2, 16)),
        (f"{name}_scales", (4, 128, 2)),
        (f"{name}_bias", (4, 128)),
    )
    counted = count_weights(found)
    assert counted.linear_parameters == 4 * 128 * 64
    assert counted.parameters == 4 * 128 * 64 + 4 * 128


def test_a_dense_base_has_none() -> None:
    dense = tensors(("model.layers.0.mlp.gate_proj.weight", (8, 16)))
    assert experts_of(dense).count == 0
    assert count_weights(dense).linear_parameters == 8 * 16
