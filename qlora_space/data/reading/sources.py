"""Where rows come from: the demo, a local file or folder, the Hub. One type for all."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import DEMO
from qlora_space.data.reading.readers import READABLE, count_rows, kind_of, read_rows
from qlora_space.data.reading.streams import DataFile, decoded_bytes, local_file
from qlora_space.data.rows import Row

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "heldout"),
    "test": ("test", "testing"),
}
_CHUNK_BYTES = 2**20
# Enough for 2,000 rows of 16,000 characters; books of a megabyte are looked at 32 of.
_SAMPLE_CHARS = 32 * 2**20


@dataclass(frozen=True)
class Source:
    """A split of a dataset that can be read again and again, always with the same rows."""

    id: str
    sha: str
    read: Callable[[], Iterator[Row]] = field(repr=False)
    config: str = ""
    split: str = "train"
    configs: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train",)
    eval_split: str = ""
    license: str = ""
    num_bytes: int = 0  # of this split when unpacked; of a packed file an estimate
    count: Callable[[], int | None] = field(default=lambda: None, repr=False)

    @property
    def num_rows(self) -> int | None:
        """Exact; None if only reading everything could tell and that takes long."""
        return self.count()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in the order of the first readable row."""
        names = (tuple(row.values) for row in itertools.islice(self.rows(), 100) if row.values)
        return next(names, ())

    def sample(self, most: int) -> tuple[list[Row], bool]:
        """The first rows, and whether these are all. Fewer than `most` where rows are very long."""
        rows: list[Row] = []
        size = 0
        for row in self.rows():
            if len(rows) == most or size > _SAMPLE_CHARS:
                return rows, False
            rows.append(row)
            size += len(repr(row.values))
        return rows, True

    def rows(self) -> Iterator[Row]:
        """All rows in order. Raises DatasetError naming the place that cannot be read."""
        return self.read()


def open_source(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    *,
    allow_local: bool = False,
) -> Source:
    """Find the dataset without reading it whole. Raises DatasetError or HubError.

    `allow_local` says that `dataset` may be a path; text from a stranger never is.
    """
    if dataset == DEMO:
        return _open_demo(split)
    if allow_local and (Path(dataset).expanduser().exists() or _looks_like_path(dataset)):
        return _open_local(Path(dataset).expanduser(), split)
    if not _HUB_ID.fullmatch(dataset) or ".." in dataset or "--" in dataset:
        raise DatasetError(
            f"{dataset[:80]!r} is not the id of a dataset on the Hub.",
            "Write it as owner/name, or upload a file.",
        )
    from qlora_space.data.reading.hub_rows import open_hub_source

    return open_hub_source(dataset, config, split, revision, token)


def _looks_like_path(dataset: str) -> bool:
    return dataset.startswith(("/", "./", "../", "~")) or bool(kind_of(dataset))


def _open_demo(split: str | None) -> Source:
    from qlora_space.core.demo import HELDOUT_FILE, TRAIN_FILE

    files = {"train": (TRAIN_FILE,), "heldout": (HELDOUT_FILE,)}
    return _file_source(DEMO, files, split, "heldout")


def _open_local(path: Path, split: str | None) -> Source:
    path = path.resolve()
    if not path.exists():
        raise DatasetError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    if path.is_file():
        if not kind_of(path.name):
            raise DatasetError(f"{path.name} is not a file that is read.", f"Use {READABLE}.")
        return _file_source(str(path), {"train": (path,)}, split, "")
    files = _files_by_split(path)
    eval_split = next((name for name in ("validation", "test") if name in files), "")
    return _file_source(str(path), files, split, eval_split if "train" in files else "")


def _files_by_split(folder: Path) -> dict[str, tuple[Path, ...]]:
    """By name (train.jsonl, test/part-0.parquet); files of other names are training rows."""
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and kind_of(p.name))
    readable = [
        p for p in inside if not any(x.startswith(".") for x in p.relative_to(folder).parts)
    ]
    if not readable:
        raise DatasetError(
            f"The folder {folder.name} has no file to read.", f"Put {READABLE} there."
        )
    found: dict[str, list[Path]] = {}
    for file in readable:
        found.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    order = [name for name in _SPLIT_NAMES if name in found]
    return {name: tuple(found[name]) for name in order}


def _split_of(name: Path) -> str:
    words = re.split(r"[^a-z]+", str(name).lower())
    return next(
        (s for s, names in _SPLIT_NAMES.items() if not set(names).isdisjoint(words)), "train"
    )


def _file_source(
    source_id: str, files: dict[str, tuple[Path, ...]], split: str | None, eval_split: str
) -> Source:
    chosen = split or ("train" if "train" in files else next(iter(files)))
    if chosen not in files:
        raise DatasetError(
            f"{Path(source_id).name} has no split {chosen[:80]!r}.",
            f"It has {', '.join(files)}.",
        )
    every_file = [file for group in files.values() for file in group]
    read = tuple(map(local_file, files[chosen]))
    return Source(
        id=source_id,
        sha=_content_hash(every_file),
        read=lambda: read_files(read),
        split=chosen,
        splits=tuple(files),
        eval_split=eval_split if eval_split != chosen else "",
        num_bytes=sum(map(decoded_bytes, read)),
        count=lambda: _count(read),
    )


def read_files(files: Iterable[DataFile]) -> Iterator[Row]:
    """Rows of all files, numbered through."""
    for number, row in enumerate(itertools.chain.from_iterable(map(read_rows, files)), start=1):
        yield Row(number, row.place, row.values, row.problem)


def _count(files: Iterable[DataFile]) -> int | None:
    total = 0
    for file in files:
        count = count_rows(file)
        if count is None:
            return None
        total += count
    return total


def _content_hash(files: list[Path]) -> str:
    """sha256 over name and content of each file, in order."""
    whole = hashlib.sha256()
    for file in files:
        part = hashlib.sha256()
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    part.update(chunk)
        except OSError as error:
            raise DatasetError(
                f"{file.name} cannot be read: {error.strerror}.", "Check it."
            ) from error
        whole.update(f"{file.name}\0{part.hexdigest()}\n".encode())
    return whole.hexdigest()
