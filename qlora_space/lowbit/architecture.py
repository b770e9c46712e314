"""The parts of a decoder-only transformer that low-bit code needs: its blocks, their linears, the logits of its head.

Works for every model of transformers whose decoder has `layers` and a final `norm` (Llama, Qwen, Mistral, Gemma, ...).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from qlora_space.core.errors import ModelError
from qlora_space.experts.module import is_fused, routers
from qlora_space.lowbit.text_model import raw_linears, text_class, without_router_loss

GENERATION_CONFIG = "generation_config.json"
EAGER_SCORES_AT_ONCE = 2**22  # attention scores of one head in one pass: a row of 2,048 tokens
_LOGIT_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_FINAL_NORMS = ("norm", "final_layernorm", "embedding_norm", "norm_f")
_BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # the last one on ARM


def empty_model(folder: Path) -> PreTrainedModel:
    """The model of config.json with parameters on the meta device and real buffers; frozen, in eval mode."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for one in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "compression_config"):
            setattr(one, name, None)
    without_router_loss(config)
    with init_empty_weights(include_buffers=False):
        model = text_class(config)._from_config(
            config, attn_implementation=attention_implementation(config)
        )
    for one in (model.config, model.config.get_text_config(decoder=True)):
        for name in ("quantization_config", "compression_config"):
            one.__dict__.pop(name, None)
    if (folder / GENERATION_CONFIG).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.requires_grad_(False).eval()


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, in order. Raises ModelError for a model that is built in another way."""
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or _final_norm(model) is None:
        raise ModelError(
            f"{type(model).__name__} is not built of layers and a last norm, so it cannot be quantized block by block.",
            "Use 4 bits, or a model of the Llama, Qwen, Mistral or Gemma kind.",
        )
    return blocks


def final_norm(model: PreTrainedModel) -> nn.Module:
    """What the decoder does after its last block. Raises ModelError."""
    decoder_blocks(model)
    norm = _final_norm(model)
    assert norm is not None
    return norm


def _final_norm(model: PreTrainedModel) -> nn.Module | None:
    decoder = model.get_decoder()
    found = (getattr(decoder, name, None) for name in _FINAL_NORMS)
    return next((norm for norm in found if norm is not None), None)


def block_names(model: PreTrainedModel) -> list[str]:
    """The blocks' names in the model, in order: "model.layers.0", ... Raises ModelError."""
    blocks = decoder_blocks(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    return [f"{prefix}.{i}" for i in range(len(blocks))]


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Linears by their name inside the block, but for routers, and those whose weight is read past the layer.

    Raises ModelError where most weights are in something else that is no fused experts either.
    """
    linears = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    raw = {*raw_linears(block), *routers(block)}
    inside = sum(m.weight.numel() for m in linears.values())
    fused = [p.numel() for m in block.modules() if is_fused(m) for p in m.parameters(recurse=False)]
    if inside < 0.9 * (sum(p.numel() for p in block.parameters()) - sum(fused)):
        raise ModelError(
            "Most weights of this base are not in linear layers.",
            "Use 4 bits, or another base.",
        )
    return {name: linear for name, linear in linears.items() if name not in raw}


def lm_logits(model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) of last hidden states (..., H), scaled as the model's forward scales them.

    Granite divides them (logits_scaling); Cohere, Muse Glimmer and Falcon-H1 multiply them; Gemma 2 caps them.
    """
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    logits = head(hidden_states)
    for name in _LOGIT_FACTORS:
        logits = logits * (getattr(config, name, None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def attention_implementation(config: PreTrainedConfig) -> str | None:
    """ "eager" where attention caps its logits (Gemma 2), else None: transformers chooses, sdpa for almost all.

    transformers 5.17 would choose sdpa for Gemma 2 as well, and leave the cap out.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def max_rows(model: Any, length: int) -> int:
    """Most rows of `length` tokens in one pass without gradients, with an adapter or without.

    Eager attention holds a score for every pair of tokens: EAGER_SCORES_AT_ONCE of them a head, at least one row.
    """
    is_eager = getattr(model.config, "_attn_implementation", "") == "eager"
    return max(1, EAGER_SCORES_AT_ONCE // length**2) if is_eager else sys.maxsize


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """What the device multiplies fastest: bf16 in hardware; else fp16 on a GPU, fp32 on a CPU."""
    if device.startswith("cuda"):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    features = getattr(torch.cpu, "get_capabilities", dict)()  # older ones have no such function
    has_bf16 = any(features.get(name) for name in _BF16_FEATURES)
    return torch.bfloat16 if has_bf16 else torch.float32
