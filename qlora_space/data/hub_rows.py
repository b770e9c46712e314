"""Streams the rows of a dataset on the Hub, at one commit. Nothing else calls `load_dataset`."""

from collections.abc import Iterator
from typing import Any

import datasets
import httpx
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from qlora_space import hub
from qlora_space.data.rows import Row, RowProblem
from qlora_space.data.sources import Source
from qlora_space.errors import DatasetError, HubError


def open_hub_source(
    dataset: str, config: str | None, split: str | None, revision: str | None, token: str | None
) -> Source:
    """Pin the commit, choose config and split. Raises DatasetError or HubError."""
    found = hub.dataset_source(dataset, config, split, revision, token)

    def read() -> Iterator[Row]:
        stream = _load(found.id, found.config, found.split, found.sha, token)
        return _rows(stream, f"{found.id} ({found.split})")

    return Source(
        id=found.id,
        sha=found.sha,
        read=read,
        config=found.config,
        split=found.split,
        configs=found.configs,
        splits=found.splits,
        eval_split=found.eval_split,
        license=found.license,
        num_bytes=found.num_bytes,
        count=lambda: found.num_rows or None,
    )


def _load(dataset: str, config: str | None, split: str, sha: str, token: str | None) -> Any:
    try:
        return datasets.load_dataset(
            dataset, name=config or None, split=split, revision=sha, streaming=True, token=token
        )
    except GatedRepoError as error:
        raise DatasetError(
            f"{dataset} asks you to accept its terms first.",
            f"Accept them at https://huggingface.co/datasets/{dataset}.",
        ) from error
    except DatasetNotFoundError as error:
        raise DatasetError(
            f"{dataset} was not found on the Hub, or it is private.",
            "Check the id, or sign in with an account that may read it.",
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise _unreachable(dataset, error) from error
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise DatasetError(
            f"{dataset} cannot be loaded: {_first_line(error)}.",
            "Choose another configuration or split, or a dataset of jsonl, csv or parquet files.",
        ) from error


def _rows(stream: Any, name: str) -> Iterator[Row]:
    """Media columns are left undecoded: only text is trained on."""
    number = 0
    try:
        # Columns are unknown where not even the first rows can be read: reading says why.
        for values in stream.decode(False) if stream.features else stream:
            number += 1
            place = f"{name}, row {number}"
            yield Row(number, place, values, _problem(values, place))
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise _unreachable(name, error) from error
    except (DatasetGenerationError, pa.ArrowException, ValueError, TypeError, OSError) as error:
        raise DatasetError(
            f"{name} cannot be read after row {number}: {_first_line(error)}.",
            "The file behind it is damaged or its rows differ in their columns.",
        ) from error


def _problem(values: Any, place: str) -> RowProblem | None:
    if isinstance(values, dict):
        return None
    return RowProblem("bad_row", f"{place} is a {type(values).__name__}, not columns.")


def _unreachable(name: str, error: BaseException) -> HubError:
    return HubError(f"The Hub did not give {name}: {_first_line(error)}.", "Try again in a minute.")


def _first_line(error: BaseException) -> str:
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
