"""What an adapter is put on: its size, its price and what cannot work, in the plan."""

from pathlib import Path

import pytest

from benchmarks.base_plans import facts_of as facts_of_base
from benchmarks.known_bases import BASES
from qlora_space.core.errors import RequestError
from qlora_space.core.facts import LinearFacts
from qlora_space.core.request import parse_request
from qlora_space.hub import model_facts
from qlora_space.plan import Plan, resolve
from qlora_space.plan.memory import adapter_parameters
from qlora_space.plan.speed import seconds_per_step
from tests.experts import tiny_mixtures
from tests.plan.test_mixtures import facts_of
from tests.plan.test_resolve import QWEN3_8B, gpu, rows

PHI = QWEN3_8B.model_copy(
    update={
        "linears": (
            LinearFacts(name="self_attn.qkv_proj", sides=100),
            LinearFacts(name="mlp.gate_up_proj", sides=1000),
        ),
        "linear_sides": 1100,
    }
)


def plan(base=QWEN3_8B, **asked: object) -> Plan:
    return resolve(parse_request(asked), base, rows(), gpu(139))


def why(made: Plan, name: str) -> str:
    return next(c.why for c in made.choices if c.name == name)


def adapter_gib(made: Plan) -> float:
    return next(p.gib for p in made.estimate.parts if p.name.startswith("adapter"))


def test_the_parts_of_an_adapter_add_up_to_the_whole() -> None:
    for base in (QWEN3_8B, PHI):
        parts = [adapter_parameters(base, 16, 0, part) for part in ("attention", "mlp")]
        assert sum(parts) == adapter_parameters(base, 16)
        assert all(parts)
    assert adapter_parameters(PHI, 16, 0, "qkv_proj") == 1600
    heads, kv, h = 32 * 128, 8 * 128, 4096
    of_q_and_v = 36 * ((h + heads) + (h + kv))
    assert adapter_parameters(QWEN3_8B, 16, 0, "q_proj,v_proj") == 16 * of_q_and_v


def test_fewer_layers_are_counted_in_memory_and_take_the_plain_step_with_its_price() -> None:
    some = plan(target_modules="attention")
    dropped = plan(lora_dropout=0.1)  # all layers, and plain too
    assert adapter_gib(some) < 0.5 * adapter_gib(dropped)
    assert (some.step_kind, some.target_modules) == ("plain", "attention")
    assert "an adapter on every linear layer: a step takes about 2" in why(some, "step_kind")


@pytest.mark.parametrize("asked", ["attention,mlp", "mlp,q_proj,k_proj,v_proj,o_proj"])
def test_all_layers_by_name_are_as_fast_as_all_linear(asked: str) -> None:
    assert plan(target_modules=asked).step_kind == "fast"


def test_a_layer_that_the_base_does_not_have_is_refused_in_the_plan() -> None:
    with pytest.raises(RequestError, match=r"names qkv_proj, but .* it has down_proj"):
        plan(target_modules="qkv_proj")
    with pytest.raises(RequestError, match=r"is attention, and .* has no such linear layers"):
        plan(PHI.model_copy(update={"linears": PHI.linears[1:]}), target_modules="attention")


def test_experts_are_adapted_with_the_mlp_and_left_alone_with_attention() -> None:
    base = facts_of("qwen3-30b-a3b").model_copy(update={"model_type": "qwen3_moe"})
    everything, mlp, attention = (
        plan(base, target_modules=t) for t in ("all-linear", "mlp", "attention")
    )
    assert [p.expert_r for p in (everything, mlp, attention)] == [2, 2, 0]
    assert "target_modules is attention" in why(attention, "expert_r")
    assert plan(base, target_modules="attention", expert_r=1).expert_r == 1
    assert attention.step_kind == everything.step_kind == "fast"
    assert mlp.step_kind == "plain"


def test_the_width_of_an_expert_is_known_with_a_gate_and_without(tmp_path: Path) -> None:
    for family in ("nemotron-h-moe", "qwen3-moe"):
        folder = tiny_mixtures.build(family, tmp_path / family)
        assert model_facts(str(folder), None, None).expert_intermediate_size == 64


def test_latent_attention_has_the_width_of_its_values() -> None:
    facts = facts_of_base("zai-org/GLM-4.7-Flash", BASES["zai-org/GLM-4.7-Flash"])
    assert facts.num_attention_heads * facts.head_dim == 20 * 256
    assert plan(facts, bits=2, group_size=64).bits == 2


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "openai/gpt-oss-20b", "google/gemma-3-4b-it"])
def test_the_shapes_of_known_bases_have_as_many_weights_as_their_makers_state(name: str) -> None:
    facts = facts_of_base(name, BASES[name])
    assert facts.parameters / 1e9 == pytest.approx(BASES[name].billions, rel=0.02)


def test_srr_needs_an_adapter_on_every_layer() -> None:
    assert plan(bits=2, target_modules="attention").init == "eora"
    with pytest.raises(RequestError, match="init is srr"):
        plan(bits=2, init="srr", target_modules="attention")


def test_rslora_scales_by_the_root_of_the_rank_at_a_rate_that_was_tried() -> None:
    made = plan(use_rslora=True, r=64)
    assert (made.lora_alpha, made.lora_scale, made.learning_rate) == (64, 8.0, 1e-4)
    assert "8-fold" in why(made, "lora_alpha")
    assert made.step_kind == "fast"
    assert (plan(r=64).lora_scale, plan(r=64).learning_rate) == (1.0, 2e-4)
    assert plan(use_rslora=True, learning_rate=3e-4).learning_rate == 3e-4


def test_dora_has_its_price_in_the_plan() -> None:
    made, plain = plan(use_dora=True), plan(lora_dropout=0.1)
    assert made.step_kind == "plain"
    assert "has no DoRA: a step takes about" in why(made, "step_kind")
    same = {"per_device_train_batch_size": 2, "gradient_checkpointing": True}
    made, plain = plan(use_dora=True, **same), plan(lora_dropout=0.1, **same)
    assert made.estimate.least_gib > plain.estimate.least_gib + 0.5
    assert made.estimate.seconds > plain.estimate.seconds


def test_dora_costs_the_more_the_fewer_tokens_a_batch_has() -> None:
    def over(tokens: int) -> float:
        dora, lora = (
            seconds_per_step(
                QWEN3_8B, gpu(139), tokens=tokens, batches=1, gradient_checkpointing=False, use_dora=d
            )
            for d in (True, False)
        )  # fmt: skip
        return dora / lora

    assert 1 < over(16384) < over(2048) < 2


@pytest.mark.parametrize(
    "asked", [{"bits": 8}, {"bits": 3}, {"bits": 4, "init": "eora"}, {"heal": True}]
)
def test_dora_needs_weights_that_peft_reads(asked: dict) -> None:
    with pytest.raises(RequestError, match="use_dora needs weights"):
        plan(use_dora=True, **asked)


def test_dora_leaves_experts_out() -> None:
    base = facts_of("qwen3-30b-a3b").model_copy(update={"model_type": "qwen3_moe"})
    assert plan(base, use_dora=True).expert_r == 0
    with pytest.raises(RequestError, match="use_dora does not work on experts"):
        plan(base, use_dora=True, expert_r=2)
