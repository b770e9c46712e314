"""Whole tiny models of every architecture in float64: the fast path's gradients are the plain path's."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from qlora_space.fast import ActivationPolicy, attach, make_batch, policies
from qlora_space.fast.model import build, differences
from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear

TINY = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXTRA = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {"original_max_position_embeddings": 128},
}


def tiny(name: str, dtype: torch.dtype = torch.float64, **lora) -> PeftModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**TINY, **EXTRA[name])
    implementation = "eager" if name == "gemma2" else "sdpa"
    base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    )
    for weight_name, weight in model.named_parameters():
        if "lora_" in weight_name:
            weight.data = torch.randn_like(weight, dtype=dtype) * 0.1
        elif "norm" in weight_name or "bias" in weight_name:
            weight.data += torch.randn_like(weight) * 0.1
    return model


@pytest.mark.parametrize("name", EXTRA)
def test_loss_and_gradients_of_two_documents_are_those_of_the_plain_path(name: str) -> None:
    model = tiny(name)
    loss, gradient = differences(model, build(model, ActivationPolicy.ALL, on_cpu=True))
    assert loss < 1e-6
    assert gradient < 1e-5


@pytest.mark.parametrize("policy", ActivationPolicy)
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_every_policy_gives_the_same_gradients(name: str, policy: ActivationPolicy) -> None:
    model = tiny(name)
    assert differences(model, build(model, policy, on_cpu=True))[1] < 1e-5


@pytest.mark.parametrize("policy", [r for r in ActivationPolicy if r < ActivationPolicy.ALL])
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_an_mlp_in_tiles_of_tokens_gives_the_same_gradients(
    name: str, policy: ActivationPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 56 tokens, padded to 128: two whole tiles and a shorter one."""
    monkeypatch.setattr(policies, "_COMMON_TILE_TOKENS", 48)
    monkeypatch.setattr(policies, "_TILE_TOKENS", {})
    model = tiny(name)
    loss, gradient = differences(model, build(model, policy, on_cpu=True))
    assert loss < 1e-6
    assert gradient < 1e-5


def test_packed_documents_do_not_see_each_other() -> None:
    fast = build(tiny("qwen3"), ActivationPolicy.LAYER, on_cpu=True)
    ids = torch.randint(3, 320, (1, 30))
    positions = torch.cat([torch.arange(18), torch.arange(12)])[None]
    whole = fast.loss_sum(make_batch(ids, ids, positions))
    parts = [
        fast.loss_sum(make_batch(ids[:, a:b], ids[:, a:b], positions[:, a:b]))
        for a, b in ((0, 18), (18, 30))
    ]
    torch.testing.assert_close(whole, sum(parts))


def test_padding_is_left_out_and_only_trained_tokens_count() -> None:
    ids = torch.arange(8)[None]
    labels = torch.tensor([[-100, -100, 2, 3, -100, -100, -100, -100]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    batch = make_batch(ids, labels, positions)
    assert batch.input_ids.tolist() == [0, 1, 2, 3]
    assert batch.rows.tolist() == [1, 2]
    assert batch.targets.tolist() == [2, 3]
    assert batch.documents.lengths == [4]


def test_what_is_not_supported_takes_the_plain_path_and_says_why() -> None:
    assert "no GPU" in attach(tiny("llama")).text
    step, text = attach(tiny("llama", lora_dropout=0.1), on_cpu=True)
    assert step is None
    assert "lora_dropout is not 0" in text


class OwnLinear(torch.nn.Linear):
    """Holds its weight in a form of its own, as lowbit's linears do."""

    def dequantize_into(self, out: torch.Tensor) -> None:
        out.copy_(2 * self.half)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input @ (2 * self.half.to(input.dtype)).t()


@pytest.mark.parametrize("policy", [ActivationPolicy.OFFLOAD, ActivationPolicy.LAYER])
def test_a_linear_that_dequantizes_itself_is_asked_to(
    policy: ActivationPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(policies._TILE_TOKENS, ActivationPolicy.OFFLOAD, 48)
    model = tiny("llama")
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.shape == (64, 128):  # down_proj
            module.__class__, module.half = OwnLinear, module.weight.data / 2
            empty = torch.empty(0, dtype=torch.float64)
            module.weight = torch.nn.Parameter(empty, requires_grad=False)
    assert differences(model, build(model, policy, on_cpu=True))[1] < 1e-5


def test_linears_that_share_an_input_may_have_different_bits() -> None:
    """Mixed bits: queries, keys and values are one product, each part dequantized by itself."""
    model = tiny("llama")
    for i, name in enumerate(n for n, _ in model.named_modules() if n.endswith("base_layer")):
        weight = model.get_submodule(name).weight
        quantized = quantize(weight.data, grid_of(2 + i % 3, 32))
        model.set_submodule(name, LowBitLinear.from_quantized(quantized, None, torch.float64))
    loss, gradient = differences(model, build(model, ActivationPolicy.LAYER, on_cpu=True))
    assert loss < 1e-6
    assert gradient < 1e-5


def test_a_layer_that_computes_something_else_is_found_out() -> None:
    model = tiny("llama")
    attention = model.get_base_model().model.layers[0].self_attn
    attention.scaling *= 3
    fast = build(model, ActivationPolicy.LAYER, on_cpu=True)
    assert differences(model, fast)[1] < 1e-5
    attention.scaling /= 3
    assert differences(model, fast)[1] > 1e-3


def test_a_fast_path_that_breaks_leaves_the_plain_one() -> None:
    model = tiny("llama")
    rotary = model.get_base_model().model.rotary_emb
    rotary.forward, plain = (lambda *_: 1 / 0), rotary.forward
    step, text = attach(model, on_cpu=True)
    rotary.forward = plain
    assert step is None
    assert "ZeroDivisionError" in text
