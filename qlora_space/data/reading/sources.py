"""Opens a dataset as a Source: the demo, a local file or folder, or a dataset on the Hub."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path, PurePath

from qlora_space.core.errors import DatasetError
from qlora_space.core.file_kinds import READABLE, is_archive, kind_of
from qlora_space.core.options import DEMO
from qlora_space.data.reading.archives import files_in_zip
from qlora_space.data.reading.folders import Splits, split_files
from qlora_space.data.reading.hub_rows import HubFiles, open_hub_source
from qlora_space.data.reading.readers import count_files, notes_of, read_files
from qlora_space.data.reading.streams import DataFile, decoded_bytes, local_file
from qlora_space.data.rows import Source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_CHUNK_BYTES = 2**20


def open_source(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    access: HubFiles | str | None = None,
    *,
    allow_local: bool = False,
) -> Source:
    """Find the dataset without reading all of it. Raises DatasetError or HubError.

    `access`: a token for the Hub, or who reads from it.
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
    return open_hub_source(dataset, config, split, revision, access)


def is_on_hub(dataset: str) -> bool:
    """Whether a text that may be a path of this machine is meant as the id of a dataset on the Hub."""
    return dataset != DEMO and not (Path(dataset).expanduser().exists() or _is_path_like(dataset))


def _is_path_like(dataset: str) -> bool:
    return (
        dataset.startswith(("/", "./", "../", "~")) or bool(kind_of(dataset)) or is_archive(dataset)
    )


def _open_demo(split: str | None) -> Source:
    from qlora_space.core.demo import HELDOUT_FILE, TRAIN_FILE

    files = {"train": (local_file(TRAIN_FILE),), "heldout": (local_file(HELDOUT_FILE),)}
    hashed = [TRAIN_FILE, HELDOUT_FILE]
    demo = _file_source(DEMO, Splits(files), split, "heldout", _content_hash(hashed))
    return replace(demo, is_public=True)


def _open_local(path: Path, split: str | None) -> Source:
    path = path.resolve()
    if not path.exists():
        raise DatasetError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    if path.is_dir():
        found = split_files(_files_in(path))
        hashed = [file.path for group in found.files.values() for file in group if file.path]
    elif is_archive(path.name):
        found, hashed = split_files(files_in_zip(local_file(path))), [path]
    elif kind_of(path.name):
        found, hashed = Splits({"train": (local_file(path),)}), [path]
    else:
        raise DatasetError(f"{path.name} is not a file that can be read.", f"Use {READABLE}.")
    eval_split = next((name for name in ("validation", "test") if name in found.files), "")
    has_train = "train" in found.files
    return _file_source(
        str(path), found, split, eval_split if has_train else "", _content_hash(hashed)
    )


def _files_in(folder: Path) -> dict[PurePath, DataFile]:
    names = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if kind_of(path.name) and path.is_file()
    )
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        raise DatasetError(
            f"The folder {folder.name} has no file to read.", f"Put {READABLE} there."
        )
    return {name: local_file(folder / name) for name in shown}


def _file_source(
    source_id: str, found: Splits, split: str | None, eval_split: str, sha: str
) -> Source:
    splits = found.files
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    if chosen not in splits:
        raise DatasetError(
            f"{Path(source_id).name} has no split {chosen[:80]!r}.",
            f"It has {', '.join(splits)}.",
        )
    files = splits[chosen]
    return Source(
        id=source_id,
        sha=sha,
        read=lambda: read_files(files),
        split=chosen,
        splits=tuple(splits),
        eval_split=eval_split if eval_split != chosen else "",
        num_bytes=sum(map(decoded_bytes, files)),
        count=lambda: count_files(files),
        note=lambda: (*found.notes, *notes_of(files)),
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
