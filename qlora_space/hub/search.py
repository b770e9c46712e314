"""Suggestions while somebody types. Best effort: on any failure an empty list, never an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from qlora_space.core.errors import QloraSpaceError
from qlora_space.hub.connection import CLIENT_ERRORS, as_argument
from qlora_space.hub.text_config import is_wrapper, state_carried

_LIMIT = 12
_SEARCHED = 40  # of which some are for images, sound, or embeddings
_TASKS = {"text-generation", "image-text-to-text", "any-to-any", None}
_MIXTURES = {
    "mixtral",
    "gpt_oss",
    "olmoe",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "qwen3_next",
    "minimax_m2",
}
_STORED = {
    "mxfp4": "MXFP4",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "NF4",
    "compressed-tensors": "packed",
}
_TIMEOUT_SECONDS = 4.0


@dataclass(frozen=True)
class ModelHit:
    id: str
    downloads: int
    parameters: int | None
    gated: bool
    kind: str = ""  # what is special, in words: 'multimodal, mixture of experts'


@dataclass(frozen=True)
class DatasetHit:
    id: str
    downloads: int
    rows: str  # a range, '1K<n<10K'; '' if unknown
    gated: bool


def search_models(text: str, token: str | None) -> list[ModelHit]:
    """Models in safetensors that write text and whose name contains the text, most used first."""
    found = _search("models", text, token)
    return [_model_hit(hit) for hit in found if hit.get("pipeline_tag") in _TASKS][:_LIMIT]


def search_datasets(text: str, token: str | None) -> list[DatasetHit]:
    """Datasets whose name contains the text, most used first."""
    return [_dataset_hit(found) for found in _search("datasets", text, token)]


def _search(kind: str, text: str, token: str | None) -> list[Mapping[str, Any]]:
    params: dict[str, Any] = {"search": text.strip()[:100], "sort": "downloads", "limit": _LIMIT}
    params["expand"] = ["downloads", "gated", "tags"]
    if kind == "models":
        params |= {"filter": "safetensors", "limit": _SEARCHED}
        params["expand"] = ["downloads", "gated", "safetensors", "config", "pipeline_tag"]
    try:
        # HfApi.list_models has no timeout.
        response = get_session().get(
            f"{constants.ENDPOINT}/api/{kind}",
            params=params,
            headers=build_hf_headers(token=as_argument(token)),
            timeout=_TIMEOUT_SECONDS,
        )
        hf_raise_for_status(response)
        found = response.json()
    except (*CLIENT_ERRORS, QloraSpaceError, ValueError):
        return []
    return [hit for hit in found if "id" in hit] if isinstance(found, list) else []


def _model_hit(found: Mapping[str, Any]) -> ModelHit:
    return ModelHit(
        id=found["id"],
        downloads=found.get("downloads") or 0,
        parameters=(found.get("safetensors") or {}).get("total"),
        gated=bool(found.get("gated")),
        kind=", ".join(_kind(found.get("config"))),
    )


def _kind(config: object) -> list[str]:
    """In words of ours, by what the Hub tells of config.json."""
    if not isinstance(config, dict):
        return []
    kind = str(config.get("model_type"))
    stored = config.get("quantization_config")
    method = str(stored.get("quant_method")) if isinstance(stored, dict) else ""
    words = {
        "multimodal": is_wrapper(config),
        "mixture of experts": kind in _MIXTURES or "moe" in kind,
        "hybrid": bool(state_carried(config)),
        _STORED.get(method, ""): method in _STORED,
    }
    return [word for word, is_so in words.items() if is_so]


def _dataset_hit(found: Mapping[str, Any]) -> DatasetHit:
    prefix = "size_categories:"
    sizes = (tag for tag in found.get("tags") or () if tag.startswith(prefix))
    return DatasetHit(
        id=found["id"],
        downloads=found.get("downloads") or 0,
        rows=next(sizes, "").removeprefix(prefix),
        gated=bool(found.get("gated")),
    )
