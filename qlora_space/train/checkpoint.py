"""Adapter folders that are whole or absent: written beside, hashed, synced, then renamed into place."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from qlora_space.errors import DiskFull
from qlora_space.events import Checkpoint
from qlora_space.model import save_adapter

_KEPT = 2
MANIFEST = "manifest.json"


def save_whole(
    model: PeftModel, folder: Path, add_files: Callable[[Path], None] = lambda _folder: None
) -> int:
    """Save the adapter so that `folder` never exists half-written; `add_files` may add to it.

    Returns its bytes. Raises DiskFull, ModelError.
    """
    half_written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(half_written, ignore_errors=True)
    try:
        half_written.mkdir(parents=True)
        save_adapter(model, half_written)
        add_files(half_written)
        num_bytes = _seal(half_written)
        if folder.exists():
            shutil.rmtree(folder)
        half_written.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors writes by itself
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskFull(
            f"The adapter could not be written: {reason}.",
            "Free some space; earlier checkpoints are still there.",
        ) from error
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
    return num_bytes


def save_checkpoint(model: PeftModel, checkpoints_folder: Path, step: int) -> Checkpoint:
    """Save checkpoints/step-000123 and forget all but the newest two."""
    started = time.monotonic()
    num_bytes = save_whole(model, checkpoints_folder / f"step-{step:06d}")
    for old in sorted(checkpoints_folder.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old)
    return Checkpoint(step=step, num_bytes=num_bytes, seconds=round(time.monotonic() - started, 4))


def _seal(folder: Path) -> int:
    """Hash and sync every file, write the manifest, return the bytes."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1))
    for path in (*files, folder / MANIFEST):
        _sync(path)
    _sync(folder)
    return sum(p.stat().st_size for p in files)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
