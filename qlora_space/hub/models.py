"""What is known of a base model before any weight is read: of the demo base, a local folder, or a Hub repository."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi

from qlora_space.core.demo import BASE_FOLDER, DEMO
from qlora_space.core.errors import ModelError
from qlora_space.core.facts import ModelFacts
from qlora_space.hub.connection import explained_errors, hub_api, is_repo_id
from qlora_space.hub.download import INDEX_FILE, SMALL_FILES, folder_at, weight_files_of_index
from qlora_space.hub.expert_tensors import Experts, experts_per_token
from qlora_space.hub.headers import Tensor, count_weights, read_remote_tensors, read_tensors
from qlora_space.hub.model_config import (
    ADAPTER_CONFIG,
    JsonObject,
    adapter_refused,
    architecture_of,
    is_adapter,
    read_json,
    refuse_files,
    refuse_remote_code,
    refuse_vocabulary,
    shape_of,
)
from qlora_space.hub.storage import refuse_stored_experts, storage_of, weights_of
from qlora_space.hub.text_config import is_blockwise, state_carried, text_of, text_type

_INFO_TIMEOUT_SECONDS = 20.0
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # of each weights file
_MAX_SMALL_BYTES = 64 * 2**20  # the largest tokenizers have 33 MB
_PARALLEL_REQUESTS = 8
_PATH_PREFIXES = ("/", "./", "../", "~")


@dataclass(frozen=True)
class _Checkpoint:
    """What config.json, names and headers say, from any of the three sources."""

    id: str
    source: Literal["demo", "local", "hub"]
    sha: str
    config: JsonObject
    tokenizer_config: JsonObject
    has_template_file: bool
    tensors: tuple[Tensor, ...]
    file_bytes: int
    license: str = ""
    gated: bool = False


def model_facts(base: str, revision: str | None, token: str | None) -> ModelFacts:
    """The facts of 'demo', of a folder with a config.json, or of a Hub id pinned to its commit.

    Raises ModelError if the model cannot be trained, HubError if the Hub does not answer.
    """
    if base == DEMO:
        return _facts(_from_folder(DEMO, BASE_FOLDER, "demo"))
    folder = folder_at(base)
    if folder is not None and (folder / "config.json").is_file():
        return _facts(_from_folder(base, folder, "local"))
    if folder is not None and is_adapter(p.name for p in folder.iterdir()):
        raise adapter_refused(base, read_json(folder / ADAPTER_CONFIG))
    if folder is not None or base.startswith(_PATH_PREFIXES):
        what = "has no config.json" if folder is not None else "does not exist"
        raise ModelError(f"The folder {base} {what}.", "Give the folder of a transformers model.")
    if not is_repo_id(base):
        raise ModelError(
            f"{base[:100]!r} is neither a Hub id nor a folder.",
            "Write it as owner/name, for example Qwen/Qwen3-0.6B.",
        )
    return _facts(_from_hub(base, revision, token))


def _facts(found: _Checkpoint) -> ModelFacts:
    kind = found.config.get("model_type")
    refuse_remote_code(found.id, found.config, "config.json", kind)
    refuse_remote_code(found.id, found.tokenizer_config, "tokenizer_config.json", kind)
    architecture = architecture_of(found.id, found.config)
    storage = storage_of(found.id, found.config)
    shape = shape_of(found.id, found.config)
    stored = weights_of(found.tensors, storage)
    weights = count_weights(stored, shape["num_hidden_layers"], str(kind))
    refuse_vocabulary(found.id, shape, weights.parameters)
    if weights.experts.count:
        refuse_stored_experts(found.id, storage)
    has_template = found.has_template_file or bool(found.tokenizer_config.get("chat_template"))
    return ModelFacts(
        id=found.id,
        source=found.source,
        sha=found.sha,
        architecture=architecture,
        model_type=text_type(found.config),
        state_carried=state_carried(found.config),
        is_blockwise=is_blockwise(found.config),
        **shape,
        tie_word_embeddings=not weights.has_head,
        parameters=weights.parameters,
        linear_parameters=weights.linear_parameters,
        linear_sides=weights.linear_sides,
        linears=weights.linears,
        left_out_parameters=weights.left_out,
        num_experts=weights.experts.per_layer,
        experts_per_token=experts_per_token(text_of(found.config)),
        expert_intermediate_size=_expert_width(weights.experts, shape["hidden_size"]),
        expert_parameters=weights.experts.parameters,
        expert_sides=weights.experts.sides,
        expert_bits=weights.experts.bits,
        file_bytes=found.file_bytes,
        quantization=storage.kept,
        quantized_bits=storage.bits if storage.kept else 0,
        read_as=storage.read_as,
        license=found.license,
        gated=found.gated,
        has_chat_template=has_template,
    )


def _expert_width(experts: Experts, hidden_size: int) -> int:
    """Of all its matrices, one side is the hidden size and the other this."""
    weights_a_column = experts.matrices * hidden_size * experts.count
    return experts.parameters // weights_a_column if weights_a_column else 0


def _from_folder(name: str, folder: Path, source: Literal["demo", "local"]) -> _Checkpoint:
    if not folder.is_dir():
        raise ModelError("The embedded base is not installed.", "Install qlora_space again.")
    names = [p.name for p in folder.iterdir()]
    refuse_files(name, names)
    files = sorted(folder.glob("model*.safetensors"))
    tokenizer_config = folder / "tokenizer_config.json"
    return _Checkpoint(
        id=name,
        source=source,
        sha=_folder_hash(folder, files),
        config=read_json(folder / "config.json"),
        tokenizer_config=read_json(tokenizer_config) if tokenizer_config.is_file() else {},
        has_template_file="chat_template.jinja" in names,
        tensors=tuple(tensor for file in files for tensor in read_tensors(file)),
        file_bytes=sum(file.stat().st_size for file in files),
    )


def _folder_hash(folder: Path, files: Iterable[Path]) -> str:
    """Of config.json and samples of the weights: a base that was trained in place has the same names and sizes."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for offset in range(0, size, max(1, size // _SAMPLES)):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:40]


def _from_hub(repo: str, revision: str | None, token: str | None) -> _Checkpoint:
    api, optional = hub_api(token), "tokenizer_config.json"
    with explained_errors(repo, ModelError, revision=revision):
        info = api.model_info(
            repo, revision=revision, files_metadata=True, timeout=_INFO_TIMEOUT_SECONDS
        )
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        sha = info.sha or ""
        if is_adapter(sizes):
            raise adapter_refused(repo, _remote_json(api, repo, sha, ADAPTER_CONFIG))
        refuse_files(repo, sizes)
        _refuse_large(repo, sizes)
        config = _remote_json(api, repo, sha, "config.json")
        weight_files = _weight_files(api, repo, sha, sizes)
        return _Checkpoint(
            id=repo,
            source="hub",
            sha=sha,
            config=config,
            tokenizer_config=_remote_json(api, repo, sha, optional) if optional in sizes else {},
            has_template_file="chat_template.jinja" in sizes,
            tensors=_remote_tensors(api, repo, sha, weight_files),
            file_bytes=sum(sizes.get(name, 0) for name in weight_files),
            license=license_of(info.card_data, info.tags),
            gated=bool(info.gated),
        )


def _remote_json(api: HfApi, repo: str, sha: str, name: str) -> JsonObject:
    return read_json(Path(api.hf_hub_download(repo, name, revision=sha)))


def _refuse_large(repo: str, sizes: Mapping[str, int]) -> None:
    """Before they are downloaded."""
    for name in SMALL_FILES:
        if sizes.get(name, 0) > _MAX_SMALL_BYTES:
            raise ModelError(
                f"{name} of {repo} has {sizes[name]:,} bytes, more than any real one.",
                "Choose another model.",
            )


def _weight_files(api: HfApi, repo: str, sha: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """In the order of transformers, and only files that the repository has."""
    if "model.safetensors" in sizes:
        return ("model.safetensors",)
    if INDEX_FILE not in sizes:
        raise ModelError(
            f"{repo} has no model.safetensors.", "Choose a model in the layout of transformers."
        )
    names = weight_files_of_index(_remote_json(api, repo, sha, INDEX_FILE))
    if missing := [name for name in names if name not in sizes]:
        raise ModelError(
            f"{INDEX_FILE} of {repo} names {missing[0][:80]!r}, which the repository does not have.",
            "Choose another model.",
        )
    return names


def _remote_tensors(api: HfApi, repo: str, sha: str, names: Sequence[str]) -> tuple[Tensor, ...]:
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        headers = pool.map(lambda name: read_remote_tensors(api, repo, sha, name), names)
        return tuple(itertools.chain.from_iterable(headers))


def license_of(card: object, tags: list[str] | None) -> str:
    """The licence's id from the card, else from the tags; '' if unknown."""
    stated = getattr(card, "license", None)
    if isinstance(stated, list):
        stated = stated[0] if stated else None
    from_tags = next((t.split(":", 1)[1] for t in tags or () if t.startswith("license:")), "")
    return str(stated or from_tags)
