"""Prepared data is shared: runs whose inputs hash the same have hard links to the same files.

An entry is put there whole and never written to again. Its hashes are looked at before each use, so
that a damaged one is made anew, and two processes that make the same one do no harm.
"""

import contextlib
import hashlib
import os
import shutil
from functools import cache
from pathlib import Path

from qlora_space.core.atomic import whole_folder
from qlora_space.core.errors import DatasetError, DiskFull
from qlora_space.data.prepared import FILES, Prepared, load_prepared

_UNUSED_KEPT = 3  # entries whose runs were deleted: a next run of the same data is likely soon


def take(entries: Path, key: str, folder: Path) -> Prepared | None:
    """Put the entry with this key into `folder`; None if there is no whole one."""
    try:
        with whole_folder(folder, "The prepared data") as part:
            for name in FILES:
                _link(_entry(entries, key) / name, part / name)
            manifest = load_prepared(part).manifest
            if manifest.key != key:
                raise DatasetError("Another data's entry.")
    except (DatasetError, DiskFull):
        return None
    return Prepared(folder, manifest)


def give(entries: Path, prepared: Prepared) -> None:
    """Make what was prepared an entry. Never fails: it is a convenience of later runs."""
    entry = _entry(entries, prepared.manifest.key)
    with contextlib.suppress(DatasetError):
        load_prepared(entry)
        return
    with contextlib.suppress(DiskFull), whole_folder(entry, "The prepared data") as part:
        for name in FILES:
            _link(prepared.folder / name, part / name)
    _forget_unused(entries)


def _entry(entries: Path, key: str) -> Path:
    """Another version of this code may prepare the same inputs otherwise."""
    return entries / hashlib.sha256(f"{key} {_code_hash()}".encode()).hexdigest()[:32]


@cache
def _code_hash() -> str:
    whole = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _forget_unused(entries: Path) -> None:
    """Keep every entry that a run has, and the newest few of the others."""
    with contextlib.suppress(OSError):
        found = sorted(entries.glob("[0-9a-f]*"), key=lambda entry: -entry.stat().st_mtime)
        unused = [entry for entry in found if (entry / FILES[0]).stat().st_nlink == 1]
        for entry in unused[_UNUSED_KEPT:]:
            shutil.rmtree(entry, ignore_errors=True)
