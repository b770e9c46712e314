"""Uploaded files: stored under a name of ours, shown under the user's. User text never becomes a path."""

import re
import secrets
import shutil
from pathlib import Path, PurePosixPath

from qlora_space.app.actions import Actions
from qlora_space.core.errors import DatasetError, DiskFull, ModelError
from qlora_space.core.file_kinds import ARCHIVE, COMPRESSIONS, KINDS, READABLE, TEXT_KINDS
from qlora_space.core.options import DEMO
from qlora_space.core.settings import Settings
from qlora_space.core.wording import visible_name

_PACKED = tuple(f".{kind}" for kind in COMPRESSIONS)
_WHOLE = tuple(f".{kind}" for kind in (*KINDS, ARCHIVE))
_KEPT = (*_WHOLE, *(f".{kind}{packed}" for kind in TEXT_KINDS for packed in _PACKED))
SUFFIXES = (*_WHOLE, *_PACKED)
_PREFIX = "upload:"
_STORED = re.compile(r"upload:([0-9a-f]{32})/([A-Za-z0-9][A-Za-z0-9._-]{0,79})")
_FOLDER = re.compile(r"(?:^|/)[0-9a-f]{32}/([^/]+)$")


def keep_upload(actions: Actions, file: Path) -> str:
    """Copy to the uploads folder; returns the form's value for it. Raises DatasetError or DiskFull."""
    suffix = _suffix_of(file.name)
    if not suffix:
        raise DatasetError(
            f"{file.name[:60]} is not a kind of file that can be read.",
            f"Upload {READABLE}.",
        )
    name = file.name[: -len(suffix)]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "rows"
    actions.check_upload(file.stat().st_size)
    folder = actions.uploads_folder / secrets.token_hex(16)
    try:
        folder.mkdir(parents=True)
        shutil.copyfile(file, folder / f"{stem}{suffix}")
    except OSError as error:
        raise DiskFull(
            f"The file could not be kept: {error.strerror}.", "Free some space and try again."
        ) from error
    return f"{_PREFIX}{folder.name}/{stem}{suffix}"


def _suffix_of(name: str) -> str:
    """'.jsonl', '.jsonl.gz'; '' for what is not read."""
    found = (suffix for suffix in _KEPT if name.lower().endswith(suffix))
    return max(found, key=len, default="")


def dataset_source(actions: Actions, value: str) -> str:
    """The source that a form value names: the stored file, or the id as it is. Raises DatasetError."""
    stored = _STORED.fullmatch(value)
    if stored:
        return str(actions.uploads_folder / stored[1] / stored[2])
    if actions.settings.is_space and looks_like_path(value):
        raise DatasetError(f"{value[:80]!r} is not a Hub dataset.", "Upload the file instead.")
    return value


def base_source(settings: Settings, value: str) -> str:
    """The same for the base, which is never uploaded. Raises ModelError."""
    if settings.is_space and looks_like_path(value):
        raise ModelError(f"{value[:80]!r} is not a Hub model.", "Write it as owner/name.")
    return value


def looks_like_path(value: str) -> bool:
    """Anything but 'name' or 'owner/name', and what happens to lie in the working folder."""
    is_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value)
    return value != DEMO and (not is_id or Path(value).exists())


def shown_name(value: str) -> str:
    """The user's name of an uploaded file, the last part of a path, else the value itself; as text to be read."""
    kept = _FOLDER.search(value.removeprefix(_PREFIX))
    is_path = value.startswith(("/", "~", "./", "../"))
    name = PurePosixPath(kept[1] if kept else value).name if kept or is_path else value
    return visible_name(name)


def form_value(actions: Actions, source: str) -> str:
    """The form's value for this source: the inverse of `dataset_source`."""
    path = PurePosixPath(source)
    is_kept = path.is_absolute() and path.parent.parent == actions.uploads_folder
    return f"{_PREFIX}{path.parent.name}/{path.name}" if is_kept else source
