"""Which configurations and splits a Hub dataset has, and which is chosen; no row is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import DatasetInfo

from qlora_space.core.errors import DatasetError
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    as_argument,
    explained_errors,
    hub_api,
    hub_error,
    is_repo_id,
)
from qlora_space.hub.models import license_of

_INFO_TIMEOUT_SECONDS = 20.0
_EVAL_SPLITS = ("validation", "valid", "val", "dev", "eval", "test")
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow", ".gz", ".zst")
_SHOWN_NAMES = 12


@dataclass(frozen=True)
class HubDataset:
    """One split of one configuration, pinned to a commit."""

    id: str
    sha: str
    config: str
    split: str
    configs: tuple[str, ...]
    splits: tuple[str, ...]
    eval_split: str  # '' if no split has the name of a held-out one
    gated: bool
    is_public: bool  # neither private nor gated
    license: str
    num_bytes: int  # of the download: this configuration if the card says so, else all data files
    num_rows: int  # of the split, 0 if the card does not say


@dataclass(frozen=True)
class _ConfigFacts:
    rows_of_split: dict[str, int]
    num_bytes: int


def dataset_source(
    id: str, config: str | None, split: str | None, revision: str | None, token: str | None
) -> HubDataset:
    """Choose one split, pinned to a commit. None: the default configuration; 'train', else the first split; main.

    Raises DatasetError that lists the existing names, HubError if the Hub does not answer.
    """
    if not is_repo_id(id):
        raise DatasetError(
            f"{id[:100]!r} is neither a Hub dataset nor a file.",
            "Write it as owner/name, for example tatsu-lab/alpaca.",
        )
    info = _info(id, revision, token)
    sha = info.sha or ""
    configs, default = _configs(id, sha, token)
    chosen = _known(id, "configuration", config or default, configs)
    facts = _config_facts(id, chosen, sha, token)
    splits = tuple(facts.rows_of_split)
    first = "train" if "train" in splits else next(iter(splits), "")
    wanted = _known(id, "split", split or first, splits)
    return HubDataset(
        id=id,
        sha=sha,
        config=chosen,
        split=wanted,
        configs=configs,
        splits=splits,
        eval_split=next((s for s in _EVAL_SPLITS if s in splits and s != wanted), ""),
        gated=bool(info.gated),
        is_public=not (info.private or info.gated),
        license=license_of(info.card_data, info.tags),
        num_bytes=facts.num_bytes or _data_bytes(info),
        num_rows=facts.rows_of_split[wanted],
    )


def _info(id: str, revision: str | None, token: str | None) -> DatasetInfo:
    """The commit and its files; the card is in the cache."""
    with explained_errors(id, DatasetError, "dataset", revision):
        api = hub_api(token)
        info = api.dataset_info(
            id, revision=revision, files_metadata=True, timeout=_INFO_TIMEOUT_SECONDS
        )
        _fetch_card(api, id, info)
    return info


def _known(id: str, what: str, name: str, known: tuple[str, ...]) -> str:
    """The name itself. Raises DatasetError with those that exist unless it is one of them."""
    if name in known:
        return name
    shown = ", ".join(known[:_SHOWN_NAMES]) + (", ..." if len(known) > _SHOWN_NAMES else "")
    raise DatasetError(f"{id} has no {what} {name!r}.", f"Choose one of: {shown}.")


def _fetch_card(api: HfApi, id: str, info: DatasetInfo) -> None:
    """Download the files that declare configurations: `datasets` takes a failed request for a missing file."""
    names = {f.rfilename for f in info.siblings or ()}
    for name in ("README.md", ".huggingface.yaml"):
        if name in names:
            api.hf_hub_download(id, name, repo_type="dataset", revision=info.sha)
    api.auth_check(id, repo_type="dataset")  # the card of a gated dataset can be read by everybody


def _data_bytes(info: DatasetInfo) -> int:
    files = info.siblings or ()
    return sum(f.size or 0 for f in files if f.rfilename.endswith(_DATA_SUFFIXES))


def _configs(id: str, sha: str, token: str | None) -> tuple[tuple[str, ...], str]:
    # Imported late, so that the page starts without pandas and pyarrow.
    from datasets import get_dataset_config_names, get_dataset_default_config_name

    with _explained_layout_errors(id, token):
        names = tuple(get_dataset_config_names(id, revision=sha, token=as_argument(token)))
        default = get_dataset_default_config_name(id, revision=sha, token=as_argument(token))
    return names, default if default in names else names[0]


def _config_facts(id: str, config: str, sha: str, token: str | None) -> _ConfigFacts:
    from datasets import get_dataset_config_info

    with _explained_layout_errors(id, token):
        info = get_dataset_config_info(id, config, revision=sha, token=as_argument(token))
    # A split is a SplitInfo where the card describes it, else a plain dict.
    splits = info.splits or {}
    rows = {name: getattr(split, "num_examples", 0) or 0 for name, split in splits.items()}
    return _ConfigFacts(rows_of_split=rows, num_bytes=info.download_size or 0)


@contextmanager
def _explained_layout_errors(id: str, token: str | None) -> Iterator[None]:
    """Raises DatasetError for a layout that datasets cannot read, HubError for a failed request."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise hub_error(error, f"{id} could not be read from the Hub") from None
    except FileNotFoundError:
        # datasets raises the same when the Hub fails: ask the Hub once more.
        with explained_errors(id, DatasetError, "dataset"):
            hub_api(token).dataset_info(id, timeout=_INFO_TIMEOUT_SECONDS)
        raise DatasetError(
            f"{id} has no data files that can be read.",
            "Use a dataset with JSON, JSONL, CSV, Parquet or text files.",
        ) from None
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{id} could not be read from the Hub") from None
    except RuntimeError:
        raise DatasetError(
            f"{id} needs a Python script of its own, and that is never run here.",
            "Use a dataset with plain data files.",
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DatasetError(
            f"The layout of {id} cannot be understood: {reason}.", "Use another dataset."
        ) from None
