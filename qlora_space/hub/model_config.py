"""What config.json says of a model, and which models are refused for it. Plain JSON: nothing is executed."""

import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

from qlora_space.core.bounded_json import Unreadable, parse_json
from qlora_space.core.errors import ModelError
from qlora_space.hub.connection import is_repo_id
from qlora_space.hub.text_config import is_wrapper, refuse_without_attention, text_of, text_type

JsonObject = dict[str, Any]
ADAPTER_CONFIG = "adapter_config.json"
_OTHER_SENSES = ("vision_config", "audio_config")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONFIG_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "multi_query_group_num"),
    "head_dim": ("v_head_dim", "head_dim"),  # latent attention has others for queries and keys
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "seq_length",
    ),
}
_DEFAULT_POSITIONS = 2048
_MAX_JSON_BYTES, _MAX_JSON_DEPTH = (
    32 * 2**20,
    32,
)  # of an index with 100,000 tensors, of a model of models
_MAX_SIZE = 2**31
_MAX_LAYERS = 4096
_MODEL_TYPE = re.compile(r"[a-z0-9_]{1,60}")
_WITHOUT_SDPA = {"gemma2", "vaultgemma"}


class Shape(TypedDict):
    """Sizes, by the names of ModelFacts."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    eager_attention: bool


def read_json(file: Path) -> JsonObject:
    """Raises ModelError if the file is not a JSON object, or larger or deeper than any real one."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise Unreadable(f"has more than {_MAX_JSON_BYTES:,} bytes")
        return parse_json_object(file.read_bytes())
    except Unreadable as error:
        raise ModelError(f"{file.name} {error}.", "Choose another model.") from None


def parse_json_object(content: bytes) -> JsonObject:
    """Raises Unreadable."""
    value = parse_json(content, _MAX_JSON_DEPTH)
    if not isinstance(value, dict):
        raise Unreadable("is not a JSON object")
    return value


def refuse_remote_code(name: str, content: JsonObject, file_name: str, model_type: object) -> None:
    """Raises ModelError if loading needs Python code that came with the model.

    Many models name code that is in transformers by now; it is left alone there, as all code from a repository is.
    """
    if content.get("auto_map") and _is_known(model_type):
        content = {key: value for key, value in content.items() if key != "auto_map"}
    if _has_code_key(content):
        raise ModelError(
            f"{name} needs Python code from its own repository ({file_name} names it), "
            "and that is never run here.",
            "Choose a model that transformers supports by itself.",
        )


def _is_known(model_type: object) -> bool:
    """Whether transformers has code for the type: looked up on the disk, because importing its list imports torch."""
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        return False
    places = getattr(find_spec("transformers"), "submodule_search_locations", None) or ()
    file = f"models/{model_type}/modeling_{model_type}.py"
    return any((Path(place) / file).is_file() for place in places)


def _has_code_key(value: object) -> bool:
    if isinstance(value, dict):
        if value.get("auto_map") or value.get("trust_remote_code"):
            return True
        return any(_has_code_key(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_code_key(inner) for inner in value)


def refuse_files(name: str, files: Iterable[str]) -> None:
    """Raises ModelError unless config.json and safetensors weights are among the files."""
    names = set(files)
    if not any(f.endswith(".safetensors") for f in names):
        raise _without_safetensors(name, names)
    if "config.json" not in names:
        raise ModelError(
            f"{name} has no config.json, so it is not a transformers model.",
            "Choose a causal language model in safetensors.",
        )


def is_adapter(files: Iterable[str]) -> bool:
    """Whether there is an adapter among the files, and no whole model."""
    names = set(files)
    return ADAPTER_CONFIG in names and "config.json" not in names


def adapter_refused(name: str, adapter: JsonObject) -> ModelError:
    """The error that says which base it belongs to, by its adapter_config.json."""
    base = str(adapter.get("base_model_name_or_path") or "")
    if not is_repo_id(base):
        return ModelError(
            f"{name} is an adapter, not a whole model.", "Choose the base that it was trained on."
        )
    return ModelError(
        f"{name} is an adapter on {base}, not a whole model.",
        f"Choose {base}; to go on from the adapter, merge it into that base first (peft's merge_and_unload).",
    )


def _without_safetensors(name: str, names: set[str]) -> ModelError:
    if any(f.endswith(".gguf") for f in names):
        return ModelError(
            f"{name} has only GGUF files, which are for running a model, not for training.",
            "Choose the original model that they were made from.",
        )
    if any(f.endswith(_PICKLE_SUFFIXES) for f in names):
        return ModelError(
            f"{name} has its weights only as pickle files (.bin, .pt), which can run code.",
            "Choose a model with safetensors weights.",
        )
    return ModelError(
        f"{name} has no safetensors weights.", "Choose a causal language model in safetensors."
    )


def architecture_of(name: str, config: JsonObject) -> str:
    """The model's class. Raises ModelError unless it is a causal language model, or has one inside that is trained."""
    stated = config.get("architectures")
    architecture = str(stated[0]) if isinstance(stated, list) and stated else ""
    if not architecture:
        raise ModelError(
            f"{name} does not say what kind of model it is (config.json has no architectures).",
            "Choose a causal language model.",
        )
    refuse_without_attention(name, config)
    is_causal = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    has_one = architecture.endswith("ForConditionalGeneration") and is_wrapper(config)
    if not (is_causal or has_one) or config.get("is_encoder_decoder"):
        raise ModelError(
            f"{name} is a {architecture}, not a causal language model.",
            "Choose a text generation model whose architecture ends in ForCausalLM, or a Gemma, Qwen or Mistral that "
            "also sees.",
        )
    if not is_wrapper(config) and any(isinstance(config.get(k), dict) for k in _OTHER_SENSES):
        raise ModelError(
            f"{name} is a {architecture} that also sees or hears, and its text cannot be trained alone.",
            "Choose a text model, or a Gemma, Qwen or Mistral that also sees.",
        )
    return architecture


def shape_of(name: str, config: JsonObject) -> Shape:
    """All sizes, under whichever key the architecture has them. Raises ModelError if a required one is missing."""
    merged = text_of(config)
    sizes = {field: _size(merged, aliases) for field, aliases in _CONFIG_KEYS.items()}
    sizes["num_hidden_layers"] = sizes["num_hidden_layers"] or _listed_layers(merged)
    _refuse_sizes(name, sizes)
    required = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [field for field in required if not sizes[field]]
    if missing:
        raise ModelError(
            f"config.json of {name} does not state {', '.join(missing)}.", "Choose another model."
        )
    heads = sizes["num_attention_heads"]
    return Shape(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"] or 4 * sizes["hidden_size"],
        num_hidden_layers=sizes["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=sizes["num_key_value_heads"] or heads,
        head_dim=sizes["head_dim"] or sizes["hidden_size"] // heads,
        vocab_size=sizes["vocab_size"],
        max_position_embeddings=sizes["max_position_embeddings"] or _DEFAULT_POSITIONS,
        # As model/base.py loads it, and as transformers 5.23 does where a config leaves the cap out.
        eager_attention=bool(merged.get("attn_logit_softcapping"))
        or text_type(config) in _WITHOUT_SDPA,
    )


def _refuse_sizes(name: str, sizes: dict[str, int]) -> None:
    """Whoever plans with such numbers plans nonsense, or for ever."""
    for field, size in sizes.items():
        most = _MAX_LAYERS if field == "num_hidden_layers" else _MAX_SIZE
        if size > most:
            raise ModelError(
                f"config.json of {name} states {field} {size:,}, more than the {most:,} of any model.",
                "Choose another model.",
            )


def refuse_vocabulary(name: str, shape: Shape, parameters: int) -> None:
    """Raises ModelError if the weights are too few for the embedding of the stated vocabulary.

    The narrowest embeddings that there are (OPT-350m's) have half the hidden size.
    """
    if shape["vocab_size"] * shape["hidden_size"] > 2 * parameters:
        raise ModelError(
            f"config.json of {name} states vocab_size {shape['vocab_size']:,}, "
            f"which {parameters:,} weights cannot hold.",
            "Choose another model.",
        )


def _listed_layers(config: JsonObject) -> int:
    """Nemotron-H names its layers one by one instead of counting them."""
    stated = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    return len(stated) if isinstance(stated, (list, str)) else 0


def _size(config: JsonObject, aliases: tuple[str, ...]) -> int:
    """The largest where each layer has its own."""
    for alias in aliases:
        value = config.get(alias)
        if isinstance(value, list) and value and all(type(v) is int for v in value):
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
