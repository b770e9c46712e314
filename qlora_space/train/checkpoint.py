"""Folders that are whole or absent: written beside, hashed, synced, renamed into place, checked when read.

Only safetensors and JSON. `step-000123` after step 123; hidden folders beside it are half-written or dying.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import PeftModel
from safetensors import SafetensorError

from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.core.events import Checkpoint
from qlora_space.model import save_adapter
from qlora_space.train.snapshot import Progress, Snapshot, adapter_weights, num_bytes

_KEPT = 2
_SPARE_BYTES = 2**20  # manifest, configuration and the file system's own
_STEP = re.compile(r"step-(\d{6,})")
MANIFEST = "manifest.json"
Entry = dict[str, Any]  # a file's line in the manifest: bytes and sha256
Entries = dict[str, Entry]  # by file name
_TENSOR_FILES = {
    "adapter": "adapter_model.safetensors",
    "optimizer": "optimizer.safetensors",
    "rng": "rng.safetensors",
}


def save_whole(
    model: PeftModel, folder: Path, add_files: Callable[[Path], None] = lambda _folder: None
) -> int:
    """Save the adapter so that `folder` never exists half-written; `add_files` may add to it.

    Returns its bytes. Raises DiskFull, ModelError.
    """

    def fill(half_written: Path) -> Entries:
        save_adapter(model, half_written)
        add_files(half_written)
        return {}

    return _make_whole(folder, num_bytes(adapter_weights(model)), fill)


def save_checkpoint(model: PeftModel, snapshot: Snapshot, checkpoints_folder: Path) -> Checkpoint:
    """Save checkpoints/step-000123 and forget what it makes superfluous. Raises DiskFull, ModelError.

    The newest two and the best stay. Later steps than this one are of a past that was gone back from.
    """
    started = time.monotonic()
    step, best = snapshot.progress.step, snapshot.progress.best_step
    if not snapshot.has_only_finite_weights():
        raise ModelError(
            f"The adapter is not finite after step {step}, so it was not saved.",
            "Start again with a lower learning rate.",
        )
    if missing_bytes(checkpoints_folder, snapshot.num_bytes) > 0:
        _forget_old(checkpoints_folder, best, kept=1)

    def fill(folder: Path) -> Entries:
        model.peft_config["default"].save_pretrained(str(folder))
        written = {}
        for name, file in _TENSOR_FILES.items():
            content = safetensors.torch.save(getattr(snapshot, name), metadata={"format": "pt"})
            written[file] = _write(folder / file, content)
        _write(folder / "scalars.json", json.dumps(snapshot.scalars).encode())
        _write(folder / "state.json", snapshot.progress.model_dump_json(indent=1).encode())
        return written

    size = _make_whole(checkpoints_folder / f"step-{step:06d}", snapshot.num_bytes, fill)
    for later in _by_step(checkpoints_folder):
        if _step_of(later) > step:
            _forget(later)
    _forget_old(checkpoints_folder, best, kept=_KEPT)
    return Checkpoint(step=step, num_bytes=size, seconds=round(time.monotonic() - started, 4))


def missing_bytes(folder: Path, num_bytes: int) -> int:
    """How many bytes more than the disk of `folder` has free are needed; 0 or less: none."""
    while not folder.exists():
        folder = folder.parent
    return num_bytes + _SPARE_BYTES - shutil.disk_usage(folder).free


def disk_full(what: str, missing: int) -> DiskFull:
    """The error, with the number of bytes to free."""
    return DiskFull(
        f"{what} needs {missing:,} bytes more than the disk has free.",
        "Free some space; earlier checkpoints are still there.",
    )


def newest_checkpoint(checkpoints_folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest one that is whole, and for each newer one that is not, its name and what is wrong."""
    skipped = []
    for replaced in checkpoints_folder.glob(".step-*.old"):  # killed between two renames
        whole = replaced.with_name(replaced.name[1:].removesuffix(".old"))
        if not whole.exists():
            replaced.rename(whole)
    for folder in reversed(_by_step(checkpoints_folder)):
        try:
            return load_checkpoint(folder), skipped
        except ModelError as error:
            skipped.append(f"{folder.name}: {error.what}")
    return None, skipped


def load_checkpoint(folder: Path) -> Snapshot:
    """Check every byte against the manifest, then read. Raises ModelError that says what is wrong."""
    contents = _checked_contents(folder)
    try:
        tensors = {n: safetensors.torch.load(contents[f]) for n, f in _TENSOR_FILES.items()}
        progress = Progress.model_validate_json(contents["state.json"])
        scalars = json.loads(contents["scalars.json"])
    except (KeyError, ValueError, SafetensorError) as error:
        raise ModelError(f"it cannot be read ({type(error).__name__})") from error
    if folder.name != f"step-{progress.step:06d}":
        raise ModelError(f"it holds step {progress.step}")
    return Snapshot(progress=progress, scalars=scalars, **tensors)


def _checked_contents(folder: Path) -> dict[str, bytes]:
    try:
        files: Mapping[str, Any] = json.loads((folder / MANIFEST).read_bytes())["files"]
        contents = {}
        for name, entry in files.items():
            if Path(name).name != name:
                raise ModelError("its manifest is damaged")
            content = (folder / name).read_bytes()
            if len(content) != entry["bytes"]:
                raise ModelError(f"{name} has {len(content):,} of {entry['bytes']:,} bytes")
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise ModelError(f"{name} is not what was written")
            contents[name] = content
    except FileNotFoundError as error:
        raise ModelError(f"{Path(error.filename).name} is missing") from error
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"its manifest is damaged ({type(error).__name__})") from error
    return contents


def _make_whole(folder: Path, needed_bytes: int, fill: Callable[[Path], Entries]) -> int:
    """`fill` returns the entries of files that it has hashed already.

    Returns the bytes written. Raises DiskFull; then the folder that was there before still is.
    """
    half_written = folder.with_name(f".{folder.name}.part")
    replaced = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(half_written, ignore_errors=True)
    if (missing := missing_bytes(folder.parent, needed_bytes)) > 0:
        raise disk_full("The adapter", missing)
    try:
        os.makedirs(half_written)
        size = _seal(half_written, fill(half_written))
        if folder.exists():  # of the same step, or an earlier attempt's adapter
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
        os.rename(half_written, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:  # peft's safetensors writes by itself
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        raise _refusal(error, half_written, needed_bytes) from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
    return size


def _refusal(error: Exception, half_written: Path, needed_bytes: int) -> DiskFull:
    reason = getattr(error, "strerror", None) or str(error)
    shutil.rmtree(half_written, ignore_errors=True)
    missing = missing_bytes(half_written.parent, needed_bytes)
    more = f"; {missing:,} bytes more are needed" if missing > 0 else ""
    return DiskFull(
        f"The adapter could not be written: {reason}{more}.",
        "Free some space; earlier checkpoints are still there.",
    )


def _write(path: Path, content: bytes) -> Entry:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(content)
        while view:
            written = os.write(descriptor, view)
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            view = view[written:]
    finally:
        os.close(descriptor)
    return _entry(content)


def _seal(folder: Path, hashed: Entries) -> int:
    """Hash and sync every file, write the manifest, return the bytes."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    entries = {p.name: hashed.get(p.name) or _entry(p.read_bytes()) for p in files}
    _write(folder / MANIFEST, json.dumps({"files": entries}, indent=1).encode())
    for path in (*files, folder / MANIFEST):
        _sync(path)
    _sync(folder)
    return sum(p.stat().st_size for p in files)


def _entry(content: bytes) -> Entry:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_old(checkpoints_folder: Path, best_step: int | None, kept: int) -> None:
    for old in _by_step(checkpoints_folder)[:-kept]:
        if _step_of(old) != best_step:
            _forget(old)


def _forget(folder: Path) -> None:
    """A kill in the middle leaves no half folder under its name; one that cannot go may stay."""
    dying = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(dying, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.rename(folder, dying)
        shutil.rmtree(dying, ignore_errors=True)


def _by_step(checkpoints_folder: Path) -> list[Path]:
    folders = [p for p in checkpoints_folder.glob("step-*") if _STEP.fullmatch(p.name)]
    return sorted(folders, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
