"""The rows of a dataset on the Hub, at one commit, with the readers and budgets of local files."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from qlora_space import hub
from qlora_space.core.file_kinds import kind_of
from qlora_space.data.reading.readers import notes_of, read_files
from qlora_space.data.reading.streams import DataFile
from qlora_space.data.reading.table_rows import count_parquet_rows
from qlora_space.data.rows import Row, Source

_MAX_FOOTERS, _PARALLEL_REQUESTS = 64, 8


class HubFiles(ABC):
    """Where bytes of the Hub's datasets come from: from the Hub (hub_files.py), or from a process that may ask it."""

    @abstractmethod
    def find(
        self, dataset: str, config: str | None, split: str | None, revision: str | None
    ) -> hub.HubDataset:
        """Pin the commit, choose config and split. Raises DatasetError or HubError."""

    @abstractmethod
    def files(self, found: hub.HubDataset) -> Iterator[DataFile] | None:
        """The files of the split, in order; None if the type of one is not ours or it is read with options."""

    @abstractmethod
    def stream(self, found: hub.HubDataset) -> Iterator[Row]:
        """Its rows as `datasets` reads them, which is for files that we do not read."""


def open_hub_source(
    dataset: str,
    config: str | None,
    split: str | None,
    revision: str | None,
    access: HubFiles | str | None,
) -> Source:
    """`access`: a token, None for nobody's. Raises DatasetError or HubError."""
    hub_files = access if isinstance(access, HubFiles) else _direct(access)
    found = hub_files.find(dataset, config, split, revision)

    def read() -> Iterator[Row]:
        files = hub_files.files(found)
        return read_files(files) if files else hub_files.stream(found)

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
        is_public=found.is_public,
        num_bytes=found.num_bytes,
        count=lambda: found.num_rows or _rows_in_footers(hub_files, found),
        note=lambda: notes_of(itertools.islice(hub_files.files(found) or (), 1)),
    )


def _direct(token: str | None) -> HubFiles:
    # `datasets` takes seconds to import, and whoever has the bytes from another process does not need it.
    from qlora_space.data.reading.hub_files import DirectHubFiles

    return DirectHubFiles(token)


def _rows_in_footers(hub_files: HubFiles, found: hub.HubDataset) -> int | None:
    """From the footers of Parquet files, fetched in parallel; None for other or too many files."""
    shards = list(itertools.islice(hub_files.files(found) or (), _MAX_FOOTERS + 1))
    are_tables = all(kind_of(file.name) == "parquet" for file in shards)
    if not shards or not are_tables or len(shards) > _MAX_FOOTERS:
        return None
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return sum(pool.map(count_parquet_rows, shards))
