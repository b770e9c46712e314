"""What the files of an adapter say: the base it was trained on, how that is loaded, and what the adapter is put on."""

import json
from pathlib import Path
from typing import Any

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.errors import ModelError
from qlora_space.core.targets import name_behind_layer
from qlora_space.hub.download import (
    ADAPTER_FILES,
    PACKED_FOLDER,
    RECORD_FILE,
    refuse_code_in,
    weight_files,
)
from qlora_space.hub.headers import read_tensors
from qlora_space.hub.model_config import JsonObject, read_json

_A = ".lora_A.weight"
_BESIDE_LORA = {
    "modules_to_save": "holds whole layers beside LoRA (modules_to_save)",
    "trainable_token_indices": "holds single tokens beside LoRA (trainable_token_indices)",
    "use_dora": "is a DoRA",
    "lora_bias": "holds biases beside LoRA",
    "layers_to_transform": "leaves layers out (layers_to_transform)",
    "layer_replication": "repeats layers (layer_replication)",
}


def read_adapter(id: str, folder: Path) -> AdapterFacts:
    """What is in the folder of `fetch_adapter`. Raises ModelError."""
    refuse_code_in(id, folder)
    config = read_json(folder / ADAPTER_FILES[1])
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{id} does not name its base.", "Give a PEFT adapter that does.")
    recipe = _recipe(folder)
    if recipe.comes_along:
        _check_packed_base(id, folder / PACKED_FOLDER)
    return AdapterFacts(
        base=base,
        base_revision=revision if isinstance(revision, str) else "",
        recipe=recipe,
        r=_whole(config.get("r")),
        expert_r=_expert_rank(config),
        lora_alpha=_whole(config.get("lora_alpha")),
        use_rslora=config.get("use_rslora") is True,
        linears=_linears(folder, config),
        special=_special(config),
    )


def _recipe(folder: Path) -> BaseRecipe:
    """How to load its base, from its record; 4 bits for an adapter that we did not train."""
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
        return BaseRecipe.model_validate(record["base"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return BaseRecipe()


def _check_packed_base(id: str, folder: Path) -> None:
    missing = [n for n in ("config.json", *weight_files(folder)) if not (folder / n).is_file()]
    if missing:
        raise ModelError(
            f"{id} has no {PACKED_FOLDER}/{missing[0]}.", "Pack the base as its card says."
        )
    refuse_code_in(id, folder)


def _linears(folder: Path, config: JsonObject) -> tuple[str, ...]:
    """Names behind the layer's number of the linears with a matrix A; experts have theirs in a module of their own."""
    names = (t.name for t in read_tensors(folder / ADAPTER_FILES[0]) if t.name.endswith(_A))
    found = {name_behind_layer(name.removesuffix(_A)) for name in names}
    owners = tuple(parameter.rpartition(".")[0] for parameter in _parameters(config))
    return tuple(sorted(name for name in found if not (owners and name.startswith(owners))))


def _special(config: JsonObject) -> str:
    """What makes it more, or other, than LoRA of one rank and scale on linears and experts; '' for nothing."""
    if (kind := config.get("peft_type")) != "LORA":
        return f"is of the kind {str(kind)[:40]}"
    for name, words in _BESIDE_LORA.items():
        if config.get(name):
            return words
    if config.get("bias", "none") != "none":
        return "holds biases beside LoRA"
    patterns = (config.get("rank_pattern"), config.get("alpha_pattern"))
    named = {key for pattern in patterns if isinstance(pattern, dict) for key in pattern}
    if named - set(_parameters(config)) or (_parameters(config) and not _expert_rank(config)):
        return "has ranks or scales that differ between layers"
    if not (_whole(config.get("r")) and _whole(config.get("lora_alpha"))):
        return "has no whole rank and alpha"
    return ""


def _expert_rank(config: JsonObject) -> int:
    """The rank that all expert parameters share; 0 if there are none, or if they differ."""
    pattern = config.get("rank_pattern")
    pattern = pattern if isinstance(pattern, dict) else {}
    ranks = {_whole(pattern.get(name)) for name in _parameters(config)}
    return ranks.pop() if len(ranks) == 1 else 0


def _parameters(config: JsonObject) -> list[str]:
    names = config.get("target_parameters")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _whole(value: Any) -> int:
    """0 for what is no whole number, and for one that no adapter has."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < 2**20 and value == int(value) else 0
