"""Reads datasets on the Hub with `datasets` and huggingface_hub: needs a network, and a token where they are private.

`datasets` knows which files make up a split; it reads them itself only if we cannot read their type.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import GatedRepoError

from qlora_space import hub
from qlora_space.core.errors import DatasetError, HubError, first_line
from qlora_space.core.file_kinds import kind_of
from qlora_space.data.reading.hub_rows import HubFiles
from qlora_space.data.reading.streams import DataFile
from qlora_space.data.rows import Row, RowProblem
from qlora_space.hub.connection import TransportError

# What one request fetches: a sample of 2,000 rows takes one or two.
BLOCK_BYTES = 2 * 2**20
_T = TypeVar("_T")


class DirectHubFiles(HubFiles):
    """Of one visitor's token; None is anonymous."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def find(
        self, dataset: str, config: str | None, split: str | None, revision: str | None
    ) -> hub.HubDataset:
        return hub.dataset_source(dataset, config, split, revision, self._token)

    def files(self, found: hub.HubDataset) -> Iterator[DataFile] | None:
        builder = _builder(found.id, found.config, found.sha, self._token)
        return _readable_files(builder, found.id, found.split, self._token)

    def stream(self, found: hub.HubDataset) -> Iterator[Row]:
        builder = _builder(found.id, found.config, found.sha, self._token)
        stream = builder.as_streaming_dataset(found.split)
        return _streamed(stream, f"{found.id} ({found.split})")


def _builder(dataset: str, config: str, sha: str, token: str | None) -> Any:
    try:
        return datasets.load_dataset_builder(
            dataset, name=config or None, revision=sha, token=token
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
    except (TransportError, ConnectionError) as error:
        raise _unreachable(dataset, error) from error
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise DatasetError(
            f"{dataset} cannot be loaded: {first_line(error.__cause__ or error)}.",
            "Choose another configuration or split, or a dataset of jsonl, csv or parquet files.",
        ) from error


def _readable_files(
    builder: Any, dataset: str, split: str, token: str | None
) -> Iterator[DataFile] | None:
    """The files of a split, in order; None if the type of one is not ours or it is read with options."""
    by_split = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    addresses = [str(address) for address in by_split.get(split, ())]
    has_options = getattr(builder.config, "field", None) is not None
    are_ours = addresses and all(a.startswith("hf://") and kind_of(a) for a in addresses)
    if has_options or not are_ours:
        return None
    system = HfFileSystem(token=token)
    return (_remote_file(system, address, dataset) for address in addresses)


def _remote_file(system: HfFileSystem, address: str, dataset: str) -> DataFile:
    # hf://datasets/OWNER/NAME@COMMIT/PATH
    path = address.partition("@")[2].partition("/")[2]

    def open_it() -> BinaryIO:
        opened = system.open(address, "rb", block_size=BLOCK_BYTES)
        return cast(BinaryIO, io.BufferedReader(_Remote(opened, path), BLOCK_BYTES))

    size = _fetch(path, lambda: system.info(address)["size"])
    return DataFile(f"{dataset}/{path}", size, open_it)


class _Remote(io.RawIOBase):
    """Bytes of a file on the Hub. Raises HubError, so that a missing reply is not taken for damage."""

    def __init__(self, opened: Any, name: str) -> None:
        self._opened, self._name = opened, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._opened.seek(offset, whence)

    def tell(self) -> int:
        return self._opened.tell()

    def readinto(self, buffer: Any) -> int:
        data = _fetch(self._name, lambda: self._opened.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._opened.close()
        super().close()


def _fetch(name: str, fetch: Callable[[], _T]) -> _T:
    try:
        return fetch()
    except (TransportError, ConnectionError, FileNotFoundError) as error:
        raise _unreachable(name, error) from error


def _streamed(stream: Any, name: str) -> Iterator[Row]:
    """Media columns are left undecoded: only text is trained on."""
    number = 0
    try:
        # Columns are unknown if not even the first rows can be read: then reading raises why.
        for values in stream.decode(False) if stream.features else stream:
            number += 1
            location = f"{name}, row {number}"
            problem = _problem(values, location)
            yield Row(number, location, values, problem, has_shared_schema=True)
    except (TransportError, ConnectionError) as error:
        raise _unreachable(name, error) from error
    except (DatasetGenerationError, pa.ArrowException, ValueError, TypeError, OSError) as error:
        raise DatasetError(
            f"{name} cannot be read after row {number}: {first_line(error.__cause__ or error)}.",
            "The file behind it is damaged or its rows differ in their columns.",
        ) from error


def _problem(values: Any, location: str) -> RowProblem | None:
    if isinstance(values, dict):
        return None
    return RowProblem("bad_row", f"{location} is a {type(values).__name__}, not columns.")


def _unreachable(name: str, error: BaseException) -> HubError:
    reason = first_line(error.__cause__ or error)
    return HubError(f"The Hub did not send {name}: {reason}.", "Try again in a minute.")
