"""A real NF4 base on the CPU: what is frozen, what is fp32, and that an adapter comes back as it was."""

import shutil
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import ModelError
from qlora_space.lowbit import architecture
from qlora_space.model import (
    adapter_sha256,
    compute_dtype,
    load_adapter,
    load_base,
    max_rows,
    save_adapter,
)
from qlora_space.model import base as base_module
from qlora_space.plan.memory import EAGER_SCORES_AT_ONCE

IDS = torch.arange(10, 60)[None]
LINEARS_PER_LAYER = 7


def with_lora(base: torch.nn.Module, is_random: bool = True) -> PeftModel:
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    if is_random:
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def test_four_bits_are_nf4_with_double_quantization_on_every_linear_but_the_head() -> None:
    base = load_base(BASE_FOLDER, 4, "cpu")
    linears = [m for m in base.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(linears) == LINEARS_PER_LAYER * base.config.num_hidden_layers
    state = linears[0].weight.quant_state
    assert state.quant_type == "nf4"
    assert state.nested
    assert base.get_input_embeddings().weight.dtype == compute_dtype("cpu")
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_cpu_computes_in_its_fastest_dtype(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the outputs differ only by rounding."""
    monkeypatch.setattr(base_module, "cpu_has_bf16", lambda: has_bf16)
    base = load_base(BASE_FOLDER, 4, "cpu")
    dtype = torch.bfloat16 if has_bf16 else torch.float32
    assert {p.dtype for p in base.parameters() if p.is_floating_point()} == {dtype}
    monkeypatch.setattr(base_module, "cpu_has_bf16", lambda: not has_bf16)
    other = logits(load_base(BASE_FOLDER, 4, "cpu")).softmax(-1)
    assert (logits(base).softmax(-1) - other).abs().sum(-1).mean() / 2 < 0.02


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_fewer_bits_stay_close_to_the_sixteen_bit_base(bits: int) -> None:
    reference = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32)
    wanted, got = (
        logits(reference).softmax(-1),
        logits(load_base(BASE_FOLDER, bits, "cpu")).softmax(-1),
    )
    distance = (wanted - got).abs().sum(
        -1
    ).mean() / 2  # total variation: 0 the same, 1 nothing in common
    assert distance < {16: 0.02, 8: 0.06, 4: 0.25}[bits]


@pytest.mark.parametrize("kind", ["gemma2", "vaultgemma"])
def test_attention_that_caps_its_logits_is_loaded_with_the_cap(kind: str, tmp_path: Path) -> None:
    """As eager attention has it, which is the model's own; without the cap the logits are others."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=4, query_pre_attn_scalar=16, attn_logit_softcapping=0.5,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(
        config, dtype=compute_dtype("cpu"), attn_implementation="eager"
    )
    for weight in model.parameters():
        weight.data *= 10
    model.save_pretrained(tmp_path)
    wanted, found = logits(model), logits(load_base(tmp_path, 16, "cpu"))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert (logits(model) - wanted).abs().max() > 0.5


def test_a_base_that_caps_nothing_is_loaded_whatever_its_architecture_could_do(
    tmp_path: Path,
) -> None:
    config = AutoConfig.for_model(
        "gemma2", vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, head_dim=16,
        num_attention_heads=4, num_key_value_heads=4, attn_logit_softcapping=None,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert logits(load_base(tmp_path, 4, "cpu")).isfinite().all()


@pytest.mark.parametrize("cap", ['"abc"', "true", "[50.0]", "7"])
def test_a_cap_that_is_no_number_is_a_sentence(cap: str, tmp_path: Path) -> None:
    AutoConfig.for_model("gemma2", num_hidden_layers=1).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(
        file.read_text().replace(
            '"attn_logit_softcapping": 50.0', f'"attn_logit_softcapping": {cap}'
        )
    )
    with pytest.raises(ModelError, match="could not be loaded"):
        load_base(tmp_path, 4, "cpu")


def test_eager_attention_takes_few_long_rows_at_once_and_all_others_any_number() -> None:
    """As many scores as one row of 2,048 tokens has."""
    base = load_base(BASE_FOLDER, 4, "cpu")
    assert max_rows(base, 4096) > 10**6
    base.set_attn_implementation("eager")
    model = with_lora(base)
    assert [max_rows(model, length) for length in (256, 1024, 2048, 8192)] == [64, 4, 1, 1]


def test_the_plan_counts_the_attention_scores_that_are_held_and_the_library_knows_the_same_device() -> (
    None
):
    """What `lowbit`, which knows nothing of the app, has of its own."""
    assert EAGER_SCORES_AT_ONCE == architecture.EAGER_SCORES_AT_ONCE
    assert architecture.default_dtype("cpu") == compute_dtype("cpu")


def test_a_fresh_adapter_changes_nothing_and_is_fp32_everywhere() -> None:
    base = load_base(BASE_FOLDER, 4, "cpu")
    before = logits(base)
    model = with_lora(base, is_random=False)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == 2 * LINEARS_PER_LAYER * base.config.num_hidden_layers
    assert {p.dtype for p in trainable} == {torch.float32}


def test_an_adapter_comes_back_with_the_same_logits(tmp_path: Path) -> None:
    model = with_lora(load_base(BASE_FOLDER, 4, "cpu"))
    save_adapter(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    again = load_adapter(load_base(BASE_FOLDER, 4, "cpu"), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), atol=0, rtol=0)


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    model = with_lora(load_base(BASE_FOLDER, 4, "cpu"))
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="1 tensors that are not finite"):
        save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_hash_of_an_adapter_is_of_its_values(tmp_path: Path) -> None:
    model = with_lora(load_base(BASE_FOLDER, 16, "cpu"))
    for name in ("a", "b"):
        save_adapter(model, tmp_path / name)
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] += 1
    save_adapter(model, tmp_path / "c")
    a, b, c = (adapter_sha256(tmp_path / name) for name in "abc")
    assert a == b != c


def test_an_adapter_of_another_shape_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = with_lora(load_base(BASE_FOLDER, 16, "cpu"))
    save_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_adapter(load_base(BASE_FOLDER, 16, "cpu"), tmp_path)


def test_an_evaluation_changes_neither_the_base_nor_the_gradients_after_it() -> None:
    model = with_lora(load_base(BASE_FOLDER, 4, "cpu"))

    def gradients() -> torch.Tensor:
        model.train().zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradients()
    first = logits(model)
    torch.testing.assert_close(gradients(), before, atol=0, rtol=0)
    torch.testing.assert_close(logits(model), first, atol=0, rtol=0)


def test_an_adapter_beside_the_weights_is_not_loaded_unseen(tmp_path: Path) -> None:
    shutil.copytree(BASE_FOLDER, tmp_path / "base")
    with_lora(load_base(BASE_FOLDER, 16, "cpu")).save_pretrained(tmp_path / "base")
    assert (tmp_path / "base" / "adapter_config.json").is_file()
    base = load_base(tmp_path / "base", 16, "cpu")
    assert not any("lora" in name for name, _ in base.named_modules())
    assert torch.equal(logits(base), logits(load_base(BASE_FOLDER, 16, "cpu")))
