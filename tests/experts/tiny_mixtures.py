"""Tiny random checkpoints of mixtures of experts, made from transformers' own config classes.

Matrices hold values that NF4 with double quantization represents exactly, so the base in 4 bits and the one in 16 give
the same logits within rounding. The tokenizer is that of the demo base's vocabulary of bytes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB, EOS, PAD = 512, 2, 3
H = 64
_HEAD = H // 4
_NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
_BLOCK = 64
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4 = torch.tensor([*_MAGNITUDES, *(-m for m in _MAGNITUDES)])
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "hidden_size": H,
    "intermediate_size": 2 * H,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": _HEAD,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": H}
_MOE = {"num_experts": 8, **_FEW}
_LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": _HEAD,
    "linear_value_head_dim": _HEAD,
}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": H // 2,
    "q_lora_rank": H // 2,
    "qk_nope_head_dim": _HEAD,
    "qk_rope_head_dim": _HEAD,
    "v_head_dim": _HEAD,
}
_SHARED = {"n_shared_experts": 1, "n_group": 2, "topk_group": 1}
_DEEPSEEK = {**_MLA, "n_routed_experts": 8, "first_k_dense_replace": 1, **_FEW, **_SHARED}
_NO_HEAD_DIM = {key: value for key, value in _PLAIN.items() if key != "head_dim"}
# family -> (model_type, settings)
_MAMBA_AND_EXPERTS = {
    **{key: value for key, value in _PLAIN.items() if key != "num_hidden_layers"},
    "layers_block_type": ["mamba", "moe", "attention", "moe"],
    "mamba_num_heads": 8,
    "mamba_head_dim": _HEAD,
    "ssm_state_size": 16,
    "n_groups": 1,
    "n_routed_experts": 8,
    "moe_shared_expert_intermediate_size": H,
    **_FEW,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "nemotron-h-moe": ("nemotron_h", _MAMBA_AND_EXPERTS),
    "mixtral": ("mixtral", {**_PLAIN, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3-moe": ("qwen3_moe", {**_PLAIN, **_MOE, "norm_topk_prob": True}),
    "qwen2-moe": (
        "qwen2_moe",
        {**_NO_HEAD_DIM, **_MOE, "shared_expert_intermediate_size": H},
    ),
    "olmoe": ("olmoe", {**_NO_HEAD_DIM, "num_experts": 8, "num_experts_per_tok": 2}),
    "gpt-oss": (
        "gpt_oss",
        {
            **_PLAIN,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": H,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "deepseek-v2": ("deepseek_v2", {**_NO_HEAD_DIM, **_DEEPSEEK}),
    "deepseek-v3": ("deepseek_v3", {**_NO_HEAD_DIM, **_DEEPSEEK}),
    "glm4-moe-lite": ("glm4_moe_lite", {**_NO_HEAD_DIM, **_DEEPSEEK}),
    "glm4-moe": (
        "glm4_moe",
        {
            **_PLAIN,
            "n_routed_experts": 8,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "partial_rotary_factor": 0.5,
            **_FEW,
        },
    ),
    "ernie4.5-moe": (
        "ernie4_5_moe",
        {
            **_NO_HEAD_DIM,
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_intermediate_size": H,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    "granite-moe": (
        "granitemoe",
        {**_NO_HEAD_DIM, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "minimax-m2": (
        "minimax_m2",
        {**_PLAIN, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": H},
    ),
    "gemma4-moe": (
        "gemma4_text",
        {
            **_PLAIN,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCAB,
            "global_head_dim": _HEAD,
            "num_kv_shared_layers": 0,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": H,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {**_PLAIN, **_MOE, **_LINEAR, "shared_expert_intermediate_size": H},
    ),
    "lfm2-moe": (
        "lfm2_moe",
        {
            **_NO_HEAD_DIM,
            "num_hidden_layers": 4,
            "num_experts": 4,
            **_FEW,
            "num_dense_layers": 1,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
    ),
}


def build(family: str, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a family into `folder`, which is made; returns it."""
    model_type, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            is_matrix = parameter.dim() in (2, 3) and min(parameter.shape[-2:]) > 8
            if is_matrix and parameter.numel() % _BLOCK == 0 and id(parameter) not in tables:
                parameter.copy_(_exact_in_nf4(parameter))
    model = model.to(torch.bfloat16)  # type: ignore[arg-type]
    if model.generation_config is not None:
        model.generation_config.pad_token_id = PAD
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def in_mxfp4(original: Path, folder: Path) -> Path:
    """A gpt-oss checkpoint with the experts of `original` rounded to MXFP4, as it is published; returns the folder."""
    shutil.copytree(original, folder)
    stored = load_file(folder / "model.safetensors")
    for name in [n for n in stored if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        weight = stored.pop(name).float().mT.contiguous()  # (E, N, K)
        grouped = weight.unflatten(-1, (-1, 32))
        exponent = grouped.abs().amax(-1).clamp_min(1e-9).log2().floor() - 2
        scaled = grouped / exponent.exp2()[..., None]
        codes = (scaled[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
        stored[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        stored[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    method = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    config = {**json.loads(file.read_text()), "quantization_config": method}
    file.write_text(json.dumps(config))
    return folder


def in_fp8(original: Path, folder: Path) -> Path:
    """A checkpoint whose matrices are in FP8, each with one scale for its blocks; returns the folder."""
    shutil.copytree(original, folder)
    stored = load_file(folder / "model.safetensors")
    for name in [n for n in stored if n.endswith("proj.weight")]:
        weight = stored[name].float()
        stored[name] = (weight * 2**8).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.full((1, 1), 2**-8)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {**json.loads(file.read_text()), "quantization_config": method}
    file.write_text(json.dumps(config))
    return folder


def _exact_in_nf4(parameter: torch.Tensor) -> torch.Tensor:
    """Levels of NF4 times 1/32, the largest one in every block, whichever of its two last axes is the inputs."""
    code = torch.tensor(_NF4) / 32
    values = code[torch.randint(16, parameter.shape)]
    values[..., :: _BLOCK // 8, :: _BLOCK // 8] = code[-1]
    return values


def _write_tokenizer(folder: Path) -> None:
    """Bytes and four special tokens, with a ChatML template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[EOS],
        pad_token=special[PAD],
        model_max_length=2048,
        chat_template=_CHATML,
    ).save_pretrained(folder)
