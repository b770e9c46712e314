"""The text model that a config.json describes: alone, or inside one that also sees or hears."""

from typing import Any

from qlora_space.core.errors import ModelError

JsonObject = dict[str, Any]
# Types whose text model is trained alone, and the type of that model where the config does not say it. Each is proved
# by tests/model/test_wrappers.py: others hide their text behind other inputs, or attend in both directions.
_TEXT_TYPES = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "mistral3": "mistral",
    "muse_glimmer": "muse_glimmer_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
# The first Gemma 3 configs leave out what Gemma3TextConfig has as its default.
_DEFAULTS: dict[str, JsonObject] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }
}
_STATE_OF_LAYERS = {
    "linear_attention": "Gated DeltaNet",
    "mamba": "Mamba",
    "mamba2": "Mamba",
    "conv": "short convolution",
    "recurrent": "recurrent",
}
_STATE_OF_TYPES = {
    "bamba": "Mamba",
    "falcon_h1": "Mamba",
    "jamba": "Mamba",
    "kimi_linear": "Kimi Delta Attention",
    "lfm2": "short convolution",
    "lfm2_moe": "short convolution",
    "minimax": "lightning attention",
    "nemotron_h": "Mamba",
    "qwen3_5_moe_text": "Gated DeltaNet",
    "qwen3_5_text": "Gated DeltaNet",
    "qwen3_next": "Gated DeltaNet",
    "recurrent_gemma": "recurrent",
    "zamba": "Mamba",
    "zamba2": "Mamba",
}
# Not built of layers that pass on hidden states alone, a last norm, and nn.Linear (lowbit/architecture.py, stream.py).
_NOT_IN_BLOCKS = {
    "bamba", "bloom", "falcon", "gemma3n_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt",
}  # fmt: skip
_WITHOUT_ATTENTION = {"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"}


def is_wrapper(config: JsonObject) -> bool:
    """Whether the text model is inside of another one."""
    return str(config.get("model_type")) in _TEXT_TYPES


def text_type(config: JsonObject) -> str:
    """The `model_type` of the text model."""
    outer = str(config.get("model_type", ""))
    if outer not in _TEXT_TYPES:
        return outer
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    return str(inner or _TEXT_TYPES[outer])


def text_of(config: JsonObject) -> JsonObject:
    """All settings of the text model in one object; older wrappers have them at the top."""
    text = config.get("text_config")
    stated = {**config, **text} if isinstance(text, dict) else config
    return {**_DEFAULTS.get(text_type(config), {}), **stated}


def state_carried(config: JsonObject) -> str:
    """What kind of layers carries state from token to token beside attention, in words; '' for none."""
    text = text_of(config)
    stated = text.get("layer_types")
    layers = set(map(str, stated)) if isinstance(stated, list) else set()
    found = next((words for kind, words in _STATE_OF_LAYERS.items() if kind in layers), "")
    if found and text_type(config) == "granitemoehybrid":
        return "Mamba"  # transformers 5 writes its layers as linear_attention
    return found or _STATE_OF_TYPES.get(text_type(config), "")


def is_blockwise(config: JsonObject) -> bool:
    """Whether it can be quantized block by block, as below 4 bits. Gemma 4 E2B and E4B give blocks more of a token."""
    more = text_of(config).get("hidden_size_per_layer_input")
    return text_type(config) not in _NOT_IN_BLOCKS and not more


def refuse_without_attention(name: str, config: JsonObject) -> None:
    """Raises ModelError for models that are nothing but state."""
    kind = str(config.get("model_type"))
    if kind in _WITHOUT_ATTENTION:
        raise ModelError(
            f"{name} is a {kind} model, which has no attention, and that is not trained here.",
            "Choose a transformer, or one that mixes attention with such layers.",
        )
