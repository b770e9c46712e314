"""Downloads from the Hub at one commit, by an allow-list of names: never pickles, never code."""

import re
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import HubError, ModelError
from qlora_space.core.facts import ModelFacts
from qlora_space.hub.connection import as_argument, explained_errors, hub_api, is_repo_id
from qlora_space.hub.model_config import JsonObject, read_json, refuse_remote_code

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONFIG_FILES = ("config.json", "generation_config.json")
INDEX_FILE = "model.safetensors.index.json"
_WEIGHT_FILES = ("model*.safetensors", INDEX_FILE)
_WEIGHT_FILE = re.compile(r"model[A-Za-z0-9._-]{0,80}\.safetensors")
_MAX_WEIGHT_FILES = 1000
SMALL_FILES = (*_CONFIG_FILES, *TOKENIZER_FILES, INDEX_FILE)
RECORD_FILE = "qlora_space.json"
MOST_RECORD_BYTES, MOST_RECORD_DEPTH = 16 * 2**20, 20  # its author may be a stranger
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
PACKED_FOLDER = "base"  # in the repository of an adapter that was published with its packed base


def folder_at(text: str) -> Path | None:
    """The existing folder that a text names, None if there is none."""
    try:
        folder = Path(text).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown ~user, a NUL
        return None


def fetch_base(facts: ModelFacts, token: str | None) -> Path:
    """The folder to load the base from; downloads what is on the Hub and not in the cache.

    Raises ModelError, HubError or DiskFull.
    """
    folder = _fetch(facts, (*_CONFIG_FILES, *TOKENIZER_FILES, *_WEIGHT_FILES), token)
    missing = [name for name in weight_files(folder) if not (folder / name).is_file()]
    if missing:
        raise _incomplete(facts.id, missing[0])
    return folder


def fetch_tokenizer(facts: ModelFacts, token: str | None) -> Path:
    """As fetch_base without the weights. Raises ModelError, HubError or DiskFull."""
    folder = _fetch(facts, (*_CONFIG_FILES, *TOKENIZER_FILES), token)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _incomplete(facts.id, _TOKENIZERS[0])
    return folder


def copy_tokenizer(base_folder: Path, folder: Path) -> None:
    """Copy the base's tokenizer files byte for byte: transformers may save them with differences."""
    for name in TOKENIZER_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)


def weight_files(folder: Path) -> set[str]:
    """Names of the weight files, looked for in the same order as by transformers."""
    index = folder / INDEX_FILE
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return {"model.safetensors"}
    return set(weight_files_of_index(read_json(index)))


def weight_files_of_index(index: JsonObject) -> tuple[str, ...]:
    """Names of files beside the index, each once. Raises ModelError for any other: names become paths and requests."""
    weights = index.get("weight_map")
    stated = weights.values() if isinstance(weights, dict) else ()
    names = tuple(dict.fromkeys(map(str, stated)))
    for name in names:
        if not _WEIGHT_FILE.fullmatch(name) or ".." in name:
            raise ModelError(
                f"{INDEX_FILE} names {name[:80]!r}, which is no file of weights.",
                "Choose another model.",
            )
    if not 0 < len(names) <= _MAX_WEIGHT_FILES:
        raise ModelError(
            f"{INDEX_FILE} names {len(names):,} files of weights.", "Choose another model."
        )
    return names


def _incomplete(name: str, missing: str) -> HubError:
    # huggingface_hub 2.4 returns a folder with some of the files if the Hub fails while it lists them.
    return HubError(
        f"The download of {name} is incomplete: {missing} is missing.",
        "Check the network and try again, or choose another model.",
    )


def fetch_adapter(id: str, token: str | None, revision: str = "") -> Path:
    """A folder with an adapter in safetensors, its tokenizer, and the packed base if one comes along; from a Hub id or
    a folder. Nothing in it is parsed: that is read_adapter's.

    Raises ModelError, HubError or DiskFull.
    """
    folder = folder_at(id) or _download_adapter(id, token, revision)
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{id} has no {missing[0]}.", "Give a PEFT adapter in safetensors.")
    return folder


def packed_files(folder: Path) -> list[str]:
    """Names of the files of a packed base that are published and loaded."""
    names = [n for n in (*_CONFIG_FILES, _WEIGHT_FILES[-1]) if (folder / n).is_file()]
    return [*names, *sorted(weight_files(folder))]


def _download_adapter(id: str, token: str | None, revision: str) -> Path:
    if not is_repo_id(id):
        raise ModelError(f"{id[:100]!r} is neither a Hub id nor a folder.", "Write owner/name.")
    with explained_errors(id, ModelError, revision=revision):
        sha = hub_api(token).model_info(id, revision=revision or None).sha or ""
    packed = tuple(f"{PACKED_FOLDER}/{n}" for n in (*_CONFIG_FILES, *_WEIGHT_FILES))
    return _download(id, sha, (*ADAPTER_FILES, *TOKENIZER_FILES, RECORD_FILE, *packed), token)


def _fetch(facts: ModelFacts, names: tuple[str, ...], token: str | None) -> Path:
    match facts.source:
        case "demo":
            folder = BASE_FOLDER
        case "local":
            folder = Path(facts.id).expanduser()
        case "hub":
            folder = _download(facts.id, facts.sha, names, token)
    refuse_code_in(facts.id, folder)
    return folder


def _download(repo: str, sha: str, names: tuple[str, ...], token: str | None) -> Path:
    with explained_errors(repo, ModelError, revision=sha):
        hub_api(token)  # sets the timeout of the session that the download uses too
        return Path(
            snapshot_download(
                repo, revision=sha, allow_patterns=list(names), token=as_argument(token)
            )
        )


def refuse_code_in(name: str, folder: Path) -> None:
    names = ("config.json", "tokenizer_config.json")
    contents = {n: read_json(folder / n) for n in names if (folder / n).is_file()}
    kind = contents.get("config.json", {}).get("model_type")
    for file_name, content in contents.items():
        refuse_remote_code(name, content, file_name, kind)
