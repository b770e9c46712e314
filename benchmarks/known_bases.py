"""Shapes of bases that people fine-tune in late 2026, as in their config.json, and checkpoints without weights.

A checkpoint here is config.json and a safetensors file whose header names every tensor with its real shape; its bytes
are a hole in the file. So a plan is made of it by the same code as of one from the Hub.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Settings = dict[str, Any]
_BLOCK = 32  # of MXFP4


@dataclass(frozen=True)
class KnownBase:
    """billions: weights of its text part. family: its tiny checkpoint (tests/tiny_families.py, or that of experts).

    text: settings of the text model. outer: of the whole one, where the text is inside. source: where the shape is
    from: "class" (the defaults of transformers' class are this model's), "repositories" (public code that states it),
    "published" (config.json as published, written down without a look at it again), "derived" (as its siblings, and
    the size fits).
    """

    architecture: str
    family: str
    billions: float
    source: str
    text: Settings = field(default_factory=dict)
    outer: Settings | None = None


def _llama(h: int, i: int, layers: int, heads: int, kv: int, **more: Any) -> Settings:
    return {
        "hidden_size": h, "intermediate_size": i, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, **more,
    }  # fmt: skip


_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960}
_LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 131072}
_GEMMA3 = {"max_position_embeddings": 131072, "head_dim": 256}
_GEMMA4_SMALL = {
    "num_attention_heads": 8, "global_head_dim": 512, "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144, "max_position_embeddings": 131072,
}  # fmt: skip
_GEMMA4_LARGE = {
    "global_head_dim": 512, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144, "sliding_window": 1024,
}  # fmt: skip
_UNTIED = {"tie_word_embeddings": False}
_EVERY_SIXTH = ["sliding_attention"] * 5 + ["full_attention"]
_EVERY_FIFTH = ["sliding_attention"] * 4 + ["full_attention"]
_NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
_NEMOTRON_LAYERS = {"M": "mamba", "E": "moe", "*": "attention"}
_GRANITE_ATTENTION = (5, 15, 25, 35)

BASES: dict[str, KnownBase] = {
    "Qwen/Qwen3-8B": KnownBase(
        "Qwen3ForCausalLM", "qwen3", 8.2, "published", _llama(4096, 12288, 36, 32, 8, **_QWEN3)),
    "Qwen/Qwen3-14B": KnownBase(
        "Qwen3ForCausalLM", "qwen3", 14.8, "published", _llama(5120, 17408, 40, 40, 8, **_QWEN3)),
    "Qwen/Qwen3.5-9B": KnownBase(
        "Qwen3_5ForConditionalGeneration", "qwen3.5", 9.0, "class",
        {"max_position_embeddings": 262144}, {}),
    "google/gemma-4-E4B-it": KnownBase(
        "Gemma4ForConditionalGeneration", "gemma4", 7.5, "repositories",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_key_value_heads": 2,
         "num_kv_shared_layers": 18, "layer_types": _EVERY_SIXTH * 7, **_GEMMA4_SMALL}, {}),
    "google/gemma-4-E2B-it": KnownBase(
        "Gemma4ForConditionalGeneration", "gemma4", 4.6, "repositories",
        {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_key_value_heads": 1,
         "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "layer_types": _EVERY_FIFTH * 7, **_GEMMA4_SMALL},
        {}),
    "openai/gpt-oss-20b": KnownBase(
        "GptOssForCausalLM", "gpt-oss", 20.9, "published",
        _llama(2880, 2880, 24, 64, 8, head_dim=64, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4,
               max_position_embeddings=131072, quantization_config={"quant_method": "mxfp4"})),
    "meta-llama/Llama-3.1-8B-Instruct": KnownBase(
        "LlamaForCausalLM", "llama", 8.0, "published", _llama(4096, 14336, 32, 32, 8, **_LLAMA3)),
    "Qwen/Qwen3.5-27B": KnownBase(
        "Qwen3_5ForConditionalGeneration", "qwen3.5", 27.0, "repositories",
        _llama(5120, 17408, 64, 24, 4, linear_num_value_heads=48, max_position_embeddings=262144), {}),
    "Qwen/Qwen3.5-35B-A3B": KnownBase(
        "Qwen3_5MoeForConditionalGeneration", "qwen3.5-moe", 34.7, "class",
        {"max_position_embeddings": 262144}, {}),
    "meta-llama/Llama-3.2-3B-Instruct": KnownBase(
        "LlamaForCausalLM", "llama-tied", 3.2, "published",
        _llama(3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True, **_LLAMA3)),
    "google/gemma-3-4b-it": KnownBase(
        "Gemma3ForConditionalGeneration", "gemma3", 3.9, "published",
        _llama(2560, 10240, 34, 8, 4, vocab_size=262208, **_GEMMA3), {}),
    "google/gemma-3-27b-it": KnownBase(
        "Gemma3ForConditionalGeneration", "gemma3", 27.0, "published",
        _llama(5376, 21504, 62, 32, 16, vocab_size=262208, **{**_GEMMA3, "head_dim": 128}), {}),
    "google/gemma-4-26B-A4B-it": KnownBase(
        "Gemma4ForConditionalGeneration", "gemma4-moe", 25.2, "repositories",
        _llama(2816, 2112, 30, 16, 8, head_dim=256, num_global_key_value_heads=2, enable_moe_block=True,
               num_experts=128, top_k_experts=8, moe_intermediate_size=704, layer_types=_EVERY_SIXTH * 5,
               **_GEMMA4_LARGE), {}),
    "Qwen/Qwen3-30B-A3B": KnownBase(
        "Qwen3MoeForCausalLM", "qwen3-moe", 30.5, "published",
        _llama(2048, 6144, 48, 32, 4, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
               decoder_sparse_step=1, **_QWEN3)),
    "Qwen/Qwen2.5-Coder-7B-Instruct": KnownBase(
        "Qwen2ForCausalLM", "qwen2.5", 7.6, "published",
        _llama(3584, 18944, 28, 28, 4, vocab_size=152064, max_position_embeddings=32768)),
    "google/gemma-4-12B-it": KnownBase(
        "Gemma4UnifiedForConditionalGeneration", "gemma4-12b", 11.9, "derived",
        _llama(3840, 15360, 48, 16, 8, head_dim=256, num_global_key_value_heads=1, layer_types=_EVERY_SIXTH * 8,
               **_GEMMA4_LARGE), {}),
    "google/gemma-4-31B-it": KnownBase(
        "Gemma4ForConditionalGeneration", "gemma4", 30.7, "repositories",
        _llama(5376, 21504, 60, 32, 16, head_dim=256, num_global_key_value_heads=4, layer_types=_EVERY_SIXTH * 10,
               **_GEMMA4_LARGE), {}),
    "mistralai/Ministral-3-8B-Base-2512": KnownBase(
        "Mistral3ForConditionalGeneration", "ministral3", 8.5, "class", {"model_type": "ministral3"}, _UNTIED),
    "mistralai/Mistral-7B-Instruct-v0.3": KnownBase(
        "MistralForCausalLM", "mistral", 7.2, "published",
        _llama(4096, 14336, 32, 32, 8, vocab_size=32768, max_position_embeddings=32768)),
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": KnownBase(
        "Mistral3ForConditionalGeneration", "mistral3", 23.6, "published",
        _llama(5120, 32768, 40, 32, 8, model_type="mistral", head_dim=128, vocab_size=131072,
               max_position_embeddings=131072), _UNTIED),
    "microsoft/phi-4": KnownBase(
        "Phi3ForCausalLM", "phi3", 14.7, "published",
        _llama(5120, 17920, 40, 40, 10, vocab_size=100352, max_position_embeddings=16384)),
    "google/gemma-3-270m-it": KnownBase(
        "Gemma3ForCausalLM", "gemma3-text", 0.27, "published",
        _llama(640, 2048, 18, 4, 1, vocab_size=262144, head_dim=256, max_position_embeddings=32768)),
    "Muse-Glimmer-30B": KnownBase(
        "MuseGlimmerForConditionalGeneration", "muse-glimmer", 27.9, "class", {}, {}),
    "LiquidAI/LFM2.5-1.2B-Instruct": KnownBase(
        "Lfm2ForCausalLM", "lfm2", 1.2, "published",
        _llama(2048, 12288, 16, 32, 8, vocab_size=65536, max_position_embeddings=128000, block_ff_dim=12288,
               block_auto_adjust_ff_dim=True, layer_types=[
                   "full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)])),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": KnownBase(
        "NemotronHForCausalLM", "nemotron-h-moe", 31.6, "repositories",
        {"hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
         "vocab_size": 131072, "intermediate_size": 1856, "mamba_num_heads": 64, "mamba_head_dim": 64,
         "ssm_state_size": 128, "n_groups": 8, "n_routed_experts": 128, "num_experts_per_tok": 6,
         "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712,
         "max_position_embeddings": 262144, "layers_block_type": [_NEMOTRON_LAYERS[c] for c in _NEMOTRON]}),
    "ibm-granite/granite-4.0-h-micro": KnownBase(
        "GraniteMoeHybridForCausalLM", "granite4", 3.2, "published",
        _llama(2048, 8192, 40, 32, 8, shared_intermediate_size=8192, vocab_size=100352, num_local_experts=0,
               num_experts_per_tok=0, mamba_n_heads=64, mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1,
               max_position_embeddings=131072, tie_word_embeddings=True,
               layer_types=["attention" if i in _GRANITE_ATTENTION else "mamba" for i in range(40)])),
    "zai-org/GLM-4.7-Flash": KnownBase("Glm4MoeLiteForCausalLM", "glm4-moe-lite", 30.0, "class"),
    "meta-llama/Llama-3.3-70B-Instruct": KnownBase(
        "LlamaForCausalLM", "llama", 70.6, "published", _llama(8192, 28672, 80, 64, 8, **_LLAMA3)),
    "Qwen/Qwen3-VL-8B-Instruct": KnownBase(
        "Qwen3VLForConditionalGeneration", "qwen3-vl", 8.2, "published",
        _llama(4096, 12288, 36, 32, 8, **{**_QWEN3, "max_position_embeddings": 262144}), {}),
}  # fmt: skip


def write_checkpoint(known: KnownBase, folder: Path) -> Path:
    """config.json and a header with every tensor of the class, in `folder`, which is made; returns it."""
    folder.mkdir(parents=True)
    config = config_of(known)
    with torch.device("meta"):
        model = getattr(transformers, known.architecture)(config)
    stated = config.to_dict() | {"architectures": [known.architecture]}
    if quantized := known.text.get("quantization_config"):
        stated["quantization_config"] = quantized
    (folder / "config.json").write_text(json.dumps(stated, default=str))
    tensors = {n: ("BF16", tuple(t.shape)) for n, t in model.state_dict().items()}
    if _is_tied(model):
        tensors.pop("lm_head.weight", None)
    if quantized:
        tensors = dict(pair for item in tensors.items() for pair in _in_mxfp4(*item))
    _write_header(folder / "model.safetensors", tensors)
    return folder


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def config_of(known: KnownBase) -> Any:
    """The config of the class, with the shape that is known."""
    kind = getattr(transformers, known.architecture).config_class.model_type
    text = {k: v for k, v in known.text.items() if k != "quantization_config"}
    if known.outer is None:
        return CONFIG_MAPPING[kind](**text)
    inner = text.get("model_type")
    if not inner:
        default = CONFIG_MAPPING[kind]()
        inner = default.get_text_config(decoder=True).model_type
    return CONFIG_MAPPING[kind](text_config={"model_type": inner, **text}, **known.outer)


def _in_mxfp4(name: str, tensor: tuple[str, tuple[int, ...]]) -> list[tuple[str, Any]]:
    """Experts as gpt-oss has them: 4-bit codes, two in a byte, and a scale for 32."""
    shape = tensor[1]
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return [(name, tensor)]
    experts, inputs, outputs = shape
    blocks = (experts, outputs, inputs // _BLOCK)
    return [(f"{name}_blocks", ("U8", (*blocks, _BLOCK // 2))), (f"{name}_scales", ("U8", blocks))]


def _write_header(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start = end
        end += torch.Size(shape).numel() * (2 if dtype == "BF16" else 1)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + end)
