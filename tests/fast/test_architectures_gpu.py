"""On a GPU, bf16 over real 4-bit weights: every architecture of the fast path is as near to fp32 as the plain path."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

from qlora_space.fast import ActivationPolicy, make_batch
from qlora_space.fast.model import build, fast_gradients, plain_gradients, relative
from qlora_space.model import load_base

pytestmark = pytest.mark.gpu
SIZES = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 64}
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "phi3": {"original_max_position_embeddings": 1024},
}
DOCUMENTS = (300, 90, 122)


def model_of(name: str, folder: Path) -> PeftModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**SIZES | MODELS[name])
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(folder, 4, "cuda"), lora)
    for weight_name, weight in model.named_parameters():
        if "lora_B" in weight_name:
            weight.data = torch.randn_like(weight) * 0.02
        elif "norm" in weight_name or weight_name.endswith("bias"):
            weight.data += torch.randn_like(weight) * 0.1
    return model


def in_fp32(model: PeftModel) -> PeftModel:
    """The same 4-bit weights and bf16 numbers, computed with in fp32."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype = torch.float32
        for p in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            p.data = p.data.float() if p.dtype == torch.bfloat16 else p.data
    return model


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_as_near_to_fp32_as_the_plain_ones(name: str, tmp_path: Path) -> None:
    """Three documents in a row; and one whole row, which takes another attention kernel on Hopper."""
    model = model_of(name, tmp_path)
    fast = build(model, ActivationPolicy.ALL)
    errors = []
    for lengths in (DOCUMENTS, (512,)):
        ids = torch.randint(3, 2048, (1, sum(lengths)))
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        labels = ids.masked_fill(positions == 0, -100)
        mine = fast_gradients(fast, make_batch(ids, labels, positions))
        plain = plain_gradients(model, ids, labels, positions, fast.parameters)
        errors.append((ids, labels, positions, mine, plain))
    exact_model = in_fp32(model)
    for ids, labels, positions, mine, plain in errors:
        loss, exact = plain_gradients(exact_model, ids, labels, positions, fast.parameters)
        assert relative([mine[0]], [loss]) < 2e-3
        assert relative(mine[1], exact) <= 1.2 * relative(plain[1], exact)
