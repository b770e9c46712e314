"""Tiny random checkpoints of the families that people fine-tune: transformers' own classes, the demo's tokenizer.

Class names, wrappers, fused layers, norms and state are those of a family; widths are small and weights random.
Every matrix is drawn from the values of NF4 with one scale, so that a base in 4 bits is the same base as in 16.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qlora_space.core.demo import BASE_FOLDER

Settings = dict[str, Any]
VOCABULARY, EOS, PAD = 2048, 2, 3  # of the demo's tokenizer
WIDTH, HEAD = 64, 16
_FIRST_MEDIA_TOKEN = 2040  # stands for images, video and sound; no text has it
_NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
_LARGEST_WEIGHT = 1 / 16
_BLOCK = 64


@dataclass(frozen=True)
class Family:
    """How a checkpoint is made. `architecture`: the class where it is not the causal one of the type."""

    model_type: str
    settings: Settings
    architecture: str = ""
    without: tuple[str, ...] = field(default=())


_SPECIAL: Settings = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
_DENSE: Settings = {
    **_SPECIAL, "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": HEAD,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
_OLD: Settings = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "bos_token_id": EOS}
_TIED: Settings = {"tie_word_embeddings": True}
_DELTA: Settings = {  # three layers of Gated DeltaNet, one of attention
    "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD,
}  # fmt: skip
_MAMBA: Settings = {
    "mamba_n_heads": 8, "mamba_d_head": HEAD, "mamba_d_state": 16, "mamba_n_groups": 1,
}  # fmt: skip
_LATENT: Settings = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": HEAD,
    "qk_rope_head_dim": HEAD, "v_head_dim": HEAD,
}  # fmt: skip
_CONVOLUTIONS: Settings = {
    "num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"],
}  # fmt: skip
_GEMMA4: Settings = {
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY,
    "global_head_dim": HEAD, "num_kv_shared_layers": 0,
}  # fmt: skip
_GEMMA3N: Settings = {
    "num_hidden_layers": 4, "intermediate_size": [2 * WIDTH] * 4, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 16,
    "activation_sparsity_pattern": [0.0] * 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
_GRANITE4: Settings = {
    "shared_intermediate_size": 2 * WIDTH, "layer_types": ["mamba", "attention"], "mamba_expand": 2,
    **_MAMBA,
}  # fmt: skip
_SECTIONS: Settings = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
}  # fmt: skip
_EYE: Settings = {  # of the Qwen kind
    "depth": 1, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": WIDTH,
    "patch_size": 14,
}  # fmt: skip
_SIGLIP: Settings = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
_QWEN_MEDIA: Settings = {
    "image_token_id": _FIRST_MEDIA_TOKEN, "video_token_id": _FIRST_MEDIA_TOKEN + 1,
    "vision_start_token_id": _FIRST_MEDIA_TOKEN + 2, "vision_end_token_id": _FIRST_MEDIA_TOKEN + 3,
}  # fmt: skip
_TOP: Settings = {"pad_token_id": PAD, "eos_token_id": EOS}
_MOE: Settings = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}


def _of(model_type: str, *without: str, **settings: Any) -> Family:
    """A causal LM with the sizes of _DENSE, but `without` some and with other `settings`."""
    kept = {name: value for name, value in _DENSE.items() if name not in without}
    return Family(model_type, kept | settings)


def _text(*without: str, **settings: Any) -> Settings:
    """The text model inside a wrapper."""
    return _of("", *without, **settings).settings


def _wrapper(model_type: str, architecture: str, **settings: Any) -> Family:
    return Family(model_type, {**_TOP, **settings}, architecture)


DENSE: Mapping[str, Family] = {
    "llama": _of("llama"),
    "llama-tied": _of("llama", **_TIED),
    "mistral": _of("mistral"),
    "ministral3-text": _of("ministral3"),
    "qwen2.5": _of("qwen2", "head_dim", **_TIED),
    "qwen3": _of("qwen3"),
    "gemma2": _of("gemma2", query_pre_attn_scalar=HEAD, **_TIED),
    "gemma3-text": _of("gemma3_text", query_pre_attn_scalar=HEAD, **_TIED),  # as in real ones
    "gemma3n-text": _of("gemma3n_text", **_GEMMA3N),
    "gemma4-text": _of("gemma4_text", **_GEMMA4),
    "phi3": _of("phi3", "head_dim", partial_rotary_factor=1.0),
    "smollm3": _of("smollm3", "head_dim", num_hidden_layers=4),
    "olmo2": _of("olmo2", "head_dim"),
    "glm4": _of("glm4", partial_rotary_factor=0.5),
    "granite3": _of("granite", "head_dim", logits_scaling=8.0, embedding_multiplier=12.0,
                    residual_multiplier=0.22, attention_multiplier=0.0625),
    "cohere2": _of("cohere2", num_hidden_layers=4, **_TIED),
    "minicpm3": _of("minicpm3", "head_dim", "num_key_value_heads", q_lora_rank=64, kv_lora_rank=64,
                    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32),
    "starcoder2": _of("starcoder2", "head_dim"),
    "gpt2": Family("gpt2", {**_OLD, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 2048}),
    "pythia": _of("gpt_neox", "head_dim", "num_key_value_heads"),
    "opt": Family("opt", {**_OLD, "pad_token_id": PAD, "hidden_size": WIDTH, "ffn_dim": 2 * WIDTH,
                          "num_hidden_layers": 2, "num_attention_heads": 4,
                          "max_position_embeddings": 2048, "word_embed_proj_dim": WIDTH}),
    "falcon": _of("falcon", "head_dim", "num_key_value_heads", "intermediate_size",
                  new_decoder_architecture=False, multi_query=True, alibi=False, parallel_attn=True,
                  bias=False),
}  # fmt: skip

# Layers that carry state from token to token.
HYBRIDS: Mapping[str, Family] = {
    "qwen3.5-text": _of("qwen3_5_text", **_DELTA),
    "lfm2": _of("lfm2", "head_dim", block_ff_dim=2 * WIDTH, block_multiple_of=64, **_CONVOLUTIONS),
    "falcon-h1": _of("falcon_h1", mamba_d_ssm=2 * WIDTH, **_MAMBA),
    "bamba": _of("bamba", "head_dim", attn_layer_indices=[1], **_MAMBA),
    "nemotron-h": _of("nemotron_h", "num_hidden_layers", mamba_num_heads=8, mamba_head_dim=HEAD,
                      layers_block_type=["mamba", "attention", "mlp", "mamba"], ssm_state_size=16,
                      n_groups=1, expand=2),
    "granite4": _of("granitemoehybrid", "head_dim", num_local_experts=0, num_experts_per_tok=0,
                    **_GRANITE4),
}  # fmt: skip

# No attention at all.
RECURRENT: Mapping[str, Family] = {
    "mamba2": Family("mamba2", {**_OLD, "pad_token_id": PAD, "hidden_size": WIDTH, "num_heads": 8,
                                "head_dim": HEAD, "state_size": 16, "n_groups": 1,
                                "num_hidden_layers": 2}),
    "rwkv": Family("rwkv", {**_OLD, "hidden_size": WIDTH, "attention_hidden_size": WIDTH,
                            "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
                            "context_length": 512}),
}  # fmt: skip

WRAPPERS: Mapping[str, Family] = {
    "gemma3": _wrapper("gemma3", "Gemma3ForConditionalGeneration", text_config=_text(num_hidden_layers=3),
                       vision_config=_SIGLIP, mm_tokens_per_image=4,
                       image_token_index=_FIRST_MEDIA_TOKEN),
    "gemma4": _wrapper("gemma4", "Gemma4ForConditionalGeneration", text_config=_text(**_GEMMA4),
                       vision_config=_SIGLIP, image_token_id=_FIRST_MEDIA_TOKEN,
                       video_token_id=_FIRST_MEDIA_TOKEN + 1, audio_token_id=_FIRST_MEDIA_TOKEN + 2),
    "qwen3.5": _wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration", text_config=_text(**_DELTA),
                        vision_config={**_EYE, "num_position_embeddings": 16}, **_QWEN_MEDIA),
    "qwen3-vl": _wrapper("qwen3_vl", "Qwen3VLForConditionalGeneration", text_config=_text(**_SECTIONS),
                         vision_config={**_EYE, "num_position_embeddings": 16,
                                        "deepstack_visual_indexes": [0]}, **_QWEN_MEDIA),
    "qwen2.5-vl": _wrapper("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration",
                           text_config=_text("head_dim", **_SECTIONS), vision_config=_EYE,
                           **_QWEN_MEDIA),
    "mistral3": _wrapper("mistral3", "Mistral3ForConditionalGeneration",
                         text_config={**_text(), "model_type": "mistral"},
                         vision_config={**_SIGLIP, "model_type": "pixtral", "head_dim": 16},
                         image_token_index=_FIRST_MEDIA_TOKEN),
    "ministral3": _wrapper("mistral3", "Mistral3ForConditionalGeneration",
                           text_config={**_text(), "model_type": "ministral3"},
                           vision_config={**_SIGLIP, "model_type": "pixtral", "head_dim": 16},
                           image_token_index=_FIRST_MEDIA_TOKEN),
    "gemma4-12b": _wrapper("gemma4_unified", "Gemma4UnifiedForConditionalGeneration",
                           text_config=_text(**{**_GEMMA4, "hidden_size_per_layer_input": 0}),
                           vision_config={"mm_embed_dim": 64, "mm_posemb_size": 16, "patch_size": 14,
                                          "output_proj_dims": WIDTH},
                           image_token_id=_FIRST_MEDIA_TOKEN, video_token_id=_FIRST_MEDIA_TOKEN + 1,
                           audio_token_id=_FIRST_MEDIA_TOKEN + 2),
    "qwen2-vl": _wrapper("qwen2_vl", "Qwen2VLForConditionalGeneration",
                         text_config=_text("head_dim", **_SECTIONS),
                         vision_config={"depth": 1, "embed_dim": 64, "hidden_size": WIDTH, "num_heads": 4,
                                        "mlp_ratio": 2, "patch_size": 14}, **_QWEN_MEDIA),
    "muse-glimmer": _wrapper("muse_glimmer", "MuseGlimmerForConditionalGeneration", text_config=_text(),
                             vision_config={**_SIGLIP, "pos_emb_height": 4, "pos_emb_width": 4},
                             out_hidden_size=64, projector_hidden_size=64,
                             image_token_id=_FIRST_MEDIA_TOKEN, video_token_id=_FIRST_MEDIA_TOKEN + 1),
    "qwen3.5-moe": _wrapper("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration",
                            text_config=_text(shared_expert_intermediate_size=WIDTH, **_DELTA, **_MOE),
                            vision_config={**_EYE, "num_position_embeddings": 16}, **_QWEN_MEDIA),
    "qwen3-vl-moe": _wrapper("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration",
                             text_config=_text(decoder_sparse_step=1, **_SECTIONS, **_MOE),
                             vision_config={**_EYE, "num_position_embeddings": 16,
                                            "deepstack_visual_indexes": [0]}, **_QWEN_MEDIA),
}  # fmt: skip

# A few: what is special about their experts is tested with them.
MIXTURES: Mapping[str, Family] = {
    "mixtral": _of("mixtral", num_local_experts=8, num_experts_per_tok=2),
    "qwen3-moe": _of("qwen3_moe", decoder_sparse_step=1, norm_topk_prob=True, **_MOE),
    "qwen3-next": _of("qwen3_next", decoder_sparse_step=1, shared_expert_intermediate_size=WIDTH,
                      **_MOE, **_DELTA),
    "deepseek-v3": _of("deepseek_v3", "head_dim", n_routed_experts=8, num_experts_per_tok=2,
                       moe_intermediate_size=WIDTH, first_k_dense_replace=1, n_shared_experts=1,
                       n_group=2, topk_group=1, **_LATENT),
    "granite4-moe": _of("granitemoehybrid", "head_dim", num_local_experts=8, num_experts_per_tok=2,
                        **_GRANITE4),
}  # fmt: skip
FAMILIES: Mapping[str, Family] = {**DENSE, **HYBRIDS, **RECURRENT, **WRAPPERS, **MIXTURES}


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a family into `folder`, which is made; returns it."""
    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG_MAPPING[family.model_type](**family.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, config)
        _draw(model)
    model = model.to(torch.bfloat16)
    if model.generation_config is not None:
        model.generation_config.pad_token_id = PAD
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def _model(family: Family, config: Any) -> Any:
    if family.architecture:
        return getattr(transformers, family.architecture)(config)
    return transformers.AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def _draw(model: torch.nn.Module) -> None:
    """Every matrix but the embeddings from the values of NF4, the largest of which is in each block."""
    embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    tables = {id(m.weight) for m in embeddings}
    for table in embeddings:  # of zeros, which have no norm, in transformers; real ones are not
        if table.padding_idx is not None:
            table.weight[table.padding_idx] = table.weight[EOS]
    values = torch.tensor(_NF4) * _LARGEST_WEIGHT
    for parameter in model.parameters():
        is_matrix = parameter.dim() in (2, 3) and min(parameter.shape[-2:]) >= 4
        if is_matrix and id(parameter) not in tables and parameter.numel() % _BLOCK == 0:
            drawn = values[torch.randint(len(_NF4), parameter.shape)].flatten()
            drawn[::_BLOCK] = _LARGEST_WEIGHT
            parameter.copy_(drawn.view_as(parameter))


def copy_tokenizer(folder: Path) -> None:
    """The demo's, of 2,048 tokens."""
    for file in BASE_FOLDER.iterdir():
        if file.suffix != ".safetensors" and "config.json" not in file.name:
            shutil.copy(file, folder)
    shutil.copy(BASE_FOLDER / "tokenizer_config.json", folder)


def change_config(folder: Path, file: str = "config.json", **changed: Any) -> None:
    """Set keys of a JSON file."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}, indent=1))
