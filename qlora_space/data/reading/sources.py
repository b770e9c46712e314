"""Opens a dataset as a Source: the demo, a local file or folder, or a dataset on the Hub."""

import hashlib
import re
from pathlib import Path

from qlora_space.core.errors import DatasetError
from qlora_space.core.options import DEMO
from qlora_space.data.reading.readers import READABLE, count_files, kind_of, read_files
from qlora_space.data.reading.streams import decoded_bytes, local_file
from qlora_space.data.rows import Source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "heldout"),
    "test": ("test", "testing"),
}
_CHUNK_BYTES = 2**20


def open_source(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    *,
    allow_local: bool = False,
) -> Source:
    """Find the dataset without reading all of it. Raises DatasetError or HubError.

    `allow_local`: `dataset` may be a path of this machine; never for text from a visitor of the page.
    """
    if dataset == DEMO:
        return _open_demo(split)
    if allow_local and (Path(dataset).expanduser().exists() or _is_path_like(dataset)):
        return _open_local(Path(dataset).expanduser(), split)
    if not _HUB_ID.fullmatch(dataset) or ".." in dataset or "--" in dataset:
        raise DatasetError(
            f"{dataset[:80]!r} is not the id of a dataset on the Hub.",
            "Write it as owner/name, or upload a file.",
        )
    # `datasets` takes seconds to import, and local files do not need it.
    from qlora_space.data.reading.hub_rows import open_hub_source

    return open_hub_source(dataset, config, split, revision, token)


def _is_path_like(dataset: str) -> bool:
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
            raise DatasetError(f"{path.name} is not a file that can be read.", f"Use {READABLE}.")
        return _file_source(str(path), {"train": (path,)}, split, "")
    files = _files_by_split(path)
    eval_split = next((name for name in ("validation", "test") if name in files), "")
    return _file_source(str(path), files, split, eval_split if "train" in files else "")


def _files_by_split(folder: Path) -> dict[str, tuple[Path, ...]]:
    """By name (train.jsonl, test/part-0.parquet); files with other names hold training rows."""
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
    opened = tuple(map(local_file, files[chosen]))
    return Source(
        id=source_id,
        sha=_content_hash(every_file),
        read=lambda: read_files(opened),
        split=chosen,
        splits=tuple(files),
        eval_split=eval_split if eval_split != chosen else "",
        num_bytes=sum(map(decoded_bytes, opened)),
        count=lambda: count_files(opened),
    )


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
