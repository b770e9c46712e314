"""Suggestions while somebody types. Best effort: on any failure an empty list, never an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from qlora_space.core.errors import QloraSpaceError
from qlora_space.hub.connection import CLIENT_ERRORS, as_argument

_LIMIT = 12
_TIMEOUT_SECONDS = 4.0


@dataclass(frozen=True)
class ModelHit:
    id: str
    downloads: int
    parameters: int | None
    gated: bool


@dataclass(frozen=True)
class DatasetHit:
    id: str
    downloads: int
    rows: str  # a range, '1K<n<10K'; '' if unknown
    gated: bool


def search_models(text: str, token: str | None) -> list[ModelHit]:
    """Text generation models in safetensors whose name contains the text, most used first."""
    return [_model_hit(found) for found in _search("models", text, token)]


def search_datasets(text: str, token: str | None) -> list[DatasetHit]:
    """Datasets whose name contains the text, most used first."""
    return [_dataset_hit(found) for found in _search("datasets", text, token)]


def _search(kind: str, text: str, token: str | None) -> list[Mapping[str, Any]]:
    params: dict[str, Any] = {"search": text.strip()[:100], "sort": "downloads", "limit": _LIMIT}
    if kind == "models":
        params["filter"] = ["text-generation", "safetensors"]
    params["expand"] = ["downloads", "gated", "safetensors" if kind == "models" else "tags"]
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
    )


def _dataset_hit(found: Mapping[str, Any]) -> DatasetHit:
    prefix = "size_categories:"
    sizes = (tag for tag in found.get("tags") or () if tag.startswith(prefix))
    return DatasetHit(
        id=found["id"],
        downloads=found.get("downloads") or 0,
        rows=next(sizes, "").removeprefix(prefix),
        gated=bool(found.get("gated")),
    )
