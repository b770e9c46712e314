"""LoRA on packed experts: peft's weights and files, the gradients of the 16-bit model, and peft alone loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlora_space.experts import expert_targets, linear_targets, packed_experts, visible_experts
from qlora_space.lowbit.text_model import raw_linears
from tests.experts.reference import packed_base, plain_base
from tests.experts.tiny_mixtures import FAMILIES

Checkpoint = Callable[[str], Path]
_IDS = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))


def adapted(base: PreTrainedModel, targets: list[str]) -> PeftModel:
    """With B of random values, the same every time."""
    raw = {name.rpartition(".")[2] for name in raw_linears(base)}
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=[n for n in linear_targets(base) if n not in raw],
        target_parameters=targets,
        rank_pattern=dict.fromkeys(targets, 2),
        alpha_pattern=dict.fromkeys(targets, 4),
    )
    torch.manual_seed(3)
    with visible_experts(base):
        model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(4)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return model


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=_IDS, labels=_IDS).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_peft_over_the_16_bit_model(
    family: str, checkpoint: Checkpoint
) -> None:
    base = packed_base(checkpoint(family))
    targets = expert_targets(base)
    plain = adapted(plain_base(checkpoint(family), base), targets)
    packed = adapted(base, targets)
    wanted_loss, wanted = loss_and_gradients(plain)
    loss, got = loss_and_gradients(packed)
    torch.testing.assert_close(loss, wanted_loss)
    assert got.keys() == wanted.keys()
    assert sum(".experts." in name for name in got) == 4 * len(list(packed_experts(base)))
    first = next(p for n, p in packed.named_parameters() if ".experts." in n and "lora_A" in n)
    assert len(first) == 2 * next(packed_experts(base))[1].num_experts
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=2e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss", "gemma4-moe"])
def test_peft_alone_loads_the_files_on_the_16_bit_base(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = packed_base(checkpoint(family))
    plain = plain_base(checkpoint(family), base)
    model = adapted(base, expert_targets(base)).eval()
    model.save_pretrained(str(tmp_path))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    # The names by which vLLM looks for the adapters of fused experts.
    assert {n.partition("experts.")[2] for n in stored if "experts." in n} == {
        "base_layer.lora_A.weight",
        "base_layer.lora_B.weight",
        "lora_A.weight",
        "lora_B.weight",
    }
    loaded = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(_IDS).logits, loaded(_IDS).logits, rtol=1e-3, atol=1e-5)


def test_the_adapter_can_be_switched_off_and_taken_away(checkpoint: Checkpoint) -> None:
    base = packed_base(checkpoint("qwen3-moe"))
    with torch.no_grad():
        before = base(_IDS).logits
        model = adapted(base, expert_targets(base)).eval()
        assert not torch.allclose(model(_IDS).logits, before)
        with model.disable_adapter():
            torch.testing.assert_close(model(_IDS).logits, before)
        torch.testing.assert_close(model.unload()(_IDS).logits, before)


def test_a_batch_of_mixed_adapters_is_refused(checkpoint: Checkpoint) -> None:
    base = packed_base(checkpoint("qwen3-moe"))
    model = adapted(base, expert_targets(base)).eval()
    with pytest.raises(ValueError, match="mixed adapter batches"):
        model(input_ids=_IDS, adapter_names=["__base__", "default"])
