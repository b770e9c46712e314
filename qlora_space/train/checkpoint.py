"""Folders that are whole or absent: written beside, hashed, synced, renamed into place, checked when read.

Only safetensors and JSON. Every file goes through `_write`, so that what the disk refuses is known.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import PeftModel
from safetensors import SafetensorError

from qlora_space.errors import DiskFull, ModelError
from qlora_space.events import Checkpoint
from qlora_space.model import save_adapter
from qlora_space.train.snapshot import Progress, Snapshot

_KEPT = 2
_SPARE_BYTES = 2**20  # manifest, events and the file system's own
MANIFEST = "manifest.json"
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

    def fill(half_written: Path) -> None:
        save_adapter(model, half_written)
        add_files(half_written)

    return _make_whole(folder, fill)


def save_checkpoint(model: PeftModel, snapshot: Snapshot, checkpoints_folder: Path) -> Checkpoint:
    """Save checkpoints/step-000123; forget all but the newest two and the best. Raises DiskFull, ModelError."""
    started = time.monotonic()
    step = snapshot.progress.step
    if not snapshot.has_only_finite_weights():
        raise ModelError(
            f"The adapter is not finite after step {step}, so it was not saved.",
            "Start again with a lower learning rate.",
        )
    _check_space(checkpoints_folder, snapshot.num_bytes)

    def fill(folder: Path) -> None:
        model.peft_config["default"].save_pretrained(str(folder))
        for name, file in _TENSOR_FILES.items():
            content = safetensors.torch.save(getattr(snapshot, name), metadata={"format": "pt"})
            _write(folder / file, content)
        _write(folder / "scalars.json", json.dumps(snapshot.scalars).encode())
        _write(folder / "state.json", snapshot.progress.model_dump_json(indent=1).encode())

    num_bytes = _make_whole(checkpoints_folder / f"step-{step:06d}", fill)
    _forget_old(checkpoints_folder, snapshot.progress.best_step)
    return Checkpoint(step=step, num_bytes=num_bytes, seconds=round(time.monotonic() - started, 4))


def newest_checkpoint(checkpoints_folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest one that is whole, and for each newer one that is not, its name and what is wrong."""
    skipped = []
    for replaced in checkpoints_folder.glob(".step-*.old"):  # killed between two renames
        whole = replaced.with_name(replaced.name[1:].removesuffix(".old"))
        if not whole.exists():
            replaced.rename(whole)
    for folder in sorted(checkpoints_folder.glob("step-*"), reverse=True):
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"its manifest is damaged ({type(error).__name__})") from error
    return contents


def _make_whole(folder: Path, fill: Callable[[Path], None]) -> int:
    """Raises DiskFull; then the folder that was there before still is."""
    half_written = folder.with_name(f".{folder.name}.part")
    replaced = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(half_written, ignore_errors=True)
    try:
        os.makedirs(half_written)
        fill(half_written)
        num_bytes = _seal(half_written)
        if folder.exists():  # of the same step, or an earlier attempt's adapter
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(folder, replaced)
        os.rename(half_written, folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:  # peft's safetensors writes by itself
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskFull(
            f"The adapter could not be written: {reason}.",
            "Free some space; earlier checkpoints are still there.",
        ) from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return num_bytes


def _write(path: Path, content: bytes) -> None:
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


def _seal(folder: Path) -> int:
    """Hash and sync every file, write the manifest, return the bytes."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    entries = {p.name: _entry(p.read_bytes()) for p in files}
    _write(folder / MANIFEST, json.dumps({"files": entries}, indent=1).encode())
    for path in (*files, folder / MANIFEST):
        _sync(path)
    _sync(folder)
    return sum(p.stat().st_size for p in files)


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    missing = num_bytes + _SPARE_BYTES - shutil.disk_usage(folder).free
    if missing > 0:
        raise DiskFull(
            f"A checkpoint needs {missing:,} bytes more than the disk has free.",
            "Free some space; earlier checkpoints are still there.",
        )


def _forget_old(checkpoints_folder: Path, best_step: int | None) -> None:
    best = f"step-{best_step or 0:06d}"
    for old in sorted(checkpoints_folder.glob("step-*"))[:-_KEPT]:
        if old.name != best:
            dying = old.with_name(f".{old.name}.part")  # a kill in the middle leaves no half folder
            os.rename(old, dying)
            shutil.rmtree(dying, ignore_errors=True)
