"""What layers with state keep for their backward pass is what the plan counts; nothing is computed for it."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, Qwen3_5TextConfig

from qlora_space.plan import memory

TOKENS = 1024
LAYERS = {
    "Gated DeltaNet": lambda h: Qwen3_5TextConfig(
        vocab_size=64, hidden_size=h, intermediate_size=3 * h, num_hidden_layers=1, num_attention_heads=h // 256,
        num_key_value_heads=1, head_dim=256, linear_num_key_heads=h // 256, linear_num_value_heads=h // 128,
        linear_key_head_dim=128, linear_value_head_dim=128, layer_types=["linear_attention"],
    ),
    "Mamba": lambda h: BambaConfig(
        vocab_size=64, hidden_size=h, intermediate_size=4 * h, num_hidden_layers=1, num_attention_heads=h // 64,
        num_key_value_heads=8, attn_layer_indices=[], mamba_n_heads=h // 32, mamba_d_head=64, mamba_d_state=128,
        mamba_n_groups=1, mamba_expand=2,
    ),
}  # fmt: skip


def kept_bytes(config: Any) -> float:
    """By the first layer, for each token."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        x = torch.randn(1, TOKENS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        positions = torch.arange(TOKENS)[None]
    model.requires_grad_(False).train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    rotary = model.model.rotary_emb(x, positions)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](
            x, position_embeddings=rotary, position_ids=positions, use_cache=False
        )
    return sum(s.nbytes() for key, s in kept.items() if key not in weights) / TOKENS


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("hidden_size", [1024, 4096])
def test_the_plan_counts_what_is_kept(kind: str, hidden_size: int) -> None:
    config = LAYERS[kind](hidden_size)
    dense = 8 * hidden_size + 6.2 * config.intermediate_size
    counted = dense + memory._STATE_BYTES[kind] * hidden_size
    assert kept_bytes(config) == pytest.approx(counted, rel=0.15)
