"""Files and folders that appear whole or not at all: written beside their name, synced, renamed into place.

`.name.<8 hex digits>.part` is filled by a living process, which holds a lock on it, or was left behind by a killed one;
`.name.<8 hex digits>.old` is what the part replaces. Older versions wrote both without the digits.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from qlora_space.core.errors import DiskFull

_HINT = "Free some space and start again."
_SPARE_BYTES = 2**20  # small files beside the tensors, and the file system's own
_LEFTOVER = re.compile(r"\.(?P<name>.+?)(?:\.[0-9a-f]{8})?\.(?:part|old)")


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old content or the new, never a part, also after a power cut. Raises DiskFull."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DiskFull(
            f"{path.name} could not be written: {error.strerror}.",
            "Free some space and try again.",
        ) from error


@contextmanager
def whole_folder(
    folder: Path, what: str, *, needed_bytes: int = 0, hint: str = _HINT
) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends; a `folder` that exists stays until then.

    All files are on disk before the name appears, and the name is when the block has ended. A kill at any moment
    leaves the old folder or the new one, if need be after `recover`. `what` names the content in errors. Raises
    DiskFull: at once where the disk lacks `needed_bytes`, and for every error in writing.
    """
    recover(folder.parent, folder.name)
    if needed_bytes and (missing := missing_bytes(folder.parent, needed_bytes)) > 0:
        raise disk_full(what, missing, hint)
    with scratch_folder(folder, what, needed_bytes=needed_bytes, hint=hint) as part:
        yield part
        for path in (*sorted(part.rglob("*")), part):
            _sync(path)
        _replace(folder, part)


@contextmanager
def scratch_folder(
    folder: Path, what: str, *, needed_bytes: int = 0, hint: str = _HINT
) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which is removed when the block ends. Raises DiskFull."""
    part, handle = _part_of(folder), None
    try:
        os.makedirs(part)
        while (handle := _lock(part)) is None:  # `recover` was quicker
            part = _part_of(folder)
            os.makedirs(part)
        yield part
    except (OSError, SafetensorError) as error:  # safetensors writes by itself
        shutil.rmtree(part, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        missing = missing_bytes(part.parent, needed_bytes) if needed_bytes else 0
        more = f"; {missing:,} bytes more are needed" if missing > 0 else ""
        raise DiskFull(f"{what} could not be written: {reason}{more}.", hint) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def recover(parent: Path, name: str | None = None) -> None:
    """Undo what killed processes left half done beside the folder of this name; beside all in `parent` if None.

    A folder that was moved away and not replaced gets its name back. What a living process writes stays.
    """
    for part, _ in _leftovers(parent, name, "part"):
        _remove_unless_locked(part)
    for old, folder in _leftovers(parent, name, "old"):
        if _is_locked(old.with_suffix(".part")):  # a living process is between its two renames
            continue
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):
                old.rename(folder)


def missing_bytes(folder: Path, num_bytes: int) -> int:
    """How many bytes more than the disk of `folder` has free are needed; 0 or less if it has enough."""
    while not folder.exists():
        folder = folder.parent
    return num_bytes + _SPARE_BYTES - shutil.disk_usage(folder).free


def disk_full(what: str, missing: int, hint: str = _HINT) -> DiskFull:
    """The error, with the number of bytes to free."""
    return DiskFull(f"{what} needs {missing:,} bytes more than the disk has free.", hint)


def _leftovers(parent: Path, name: str | None, kind: str) -> Iterator[tuple[Path, Path]]:
    """Hidden folders of this kind, each with the folder that it belongs to."""
    for path in parent.glob(f".*.{kind}"):
        match = _LEFTOVER.fullmatch(path.name)
        if match and name in (None, match["name"]) and path.is_dir():
            yield path, path.with_name(match["name"])


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")


def _replace(folder: Path, part: Path) -> None:
    old = part.with_suffix(".old")
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(part, folder)
        _sync(folder.parent)
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            os.rename(old, folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(part: Path) -> int | None:
    """A descriptor that the kernel closes however this process ends; None if the folder is gone already."""
    try:
        handle = os.open(part, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    if part.exists():
        return handle
    os.close(handle)
    return None


def _is_locked(part: Path) -> bool:
    try:
        handle = os.open(part, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def _remove_unless_locked(part: Path) -> None:
    with suppress(OSError):  # gone meanwhile, locked, or a file system without locks
        handle = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        finally:
            os.close(handle)
