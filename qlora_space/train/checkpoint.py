"""Checkpoints and the adapter: whole folders of safetensors and JSON, with a manifest of hashes checked when read.

`step-000123` is saved after step 123; hidden folders beside it are half written or about to go (core/atomic.py).
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

from qlora_space.core.atomic import missing_bytes, recover, whole_folder
from qlora_space.core.errors import ModelError
from qlora_space.core.events import Checkpoint
from qlora_space.model import save_adapter
from qlora_space.train.snapshot import Progress, Snapshot, adapter_weights, num_bytes

_KEPT = 2
_HINT = "Free some space; earlier checkpoints are still there."
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
    """Save the adapter so that `folder` never exists half written; `add_files` may add files to it.

    Returns its bytes. Raises DiskFull, ModelError.
    """
    needed_bytes = num_bytes(adapter_weights(model))
    with whole_folder(folder, "The adapter", needed_bytes=needed_bytes, hint=_HINT) as part:
        save_adapter(model, part)
        add_files(part)
        return _write_manifest(part, {})


def save_checkpoint(model: PeftModel, snapshot: Snapshot, checkpoints_folder: Path) -> Checkpoint:
    """Save checkpoints/step-000123, then delete all but the newest two and the best. Raises DiskFull, ModelError.

    Checkpoints of later steps go too: training went back from there.
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

    folder = checkpoints_folder / f"step-{step:06d}"
    with whole_folder(folder, "The adapter", needed_bytes=snapshot.num_bytes, hint=_HINT) as part:
        size = _fill(part, model, snapshot)
    for later in _by_step(checkpoints_folder):
        if _step_of(later) > step:
            _forget(later)
    _forget_old(checkpoints_folder, best, kept=_KEPT)
    return Checkpoint(step=step, num_bytes=size, seconds=round(time.monotonic() - started, 4))


def _fill(folder: Path, model: PeftModel, snapshot: Snapshot) -> int:
    """Write the files of a checkpoint; returns their bytes."""
    model.peft_config["default"].save_pretrained(str(folder))
    hashed = {}
    for name, file in _TENSOR_FILES.items():
        content = safetensors.torch.save(getattr(snapshot, name), metadata={"format": "pt"})
        hashed[file] = _write(folder / file, content)
    _write(folder / "scalars.json", json.dumps(snapshot.scalars).encode())
    _write(folder / "state.json", snapshot.progress.model_dump_json(indent=1).encode())
    return _write_manifest(folder, hashed)


def newest_checkpoint(checkpoints_folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest one that is whole, and for each newer one that is not, its name and what is wrong."""
    skipped = []
    recover(checkpoints_folder)
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


def _write_manifest(folder: Path, hashed: Entries) -> int:
    """Hash the files that are not in `hashed` yet, and list all of them. Returns their bytes."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    entries = {p.name: hashed.get(p.name) or _entry(p.read_bytes()) for p in files}
    _write(folder / MANIFEST, json.dumps({"files": entries}, indent=1).encode())
    return sum(p.stat().st_size for p in files)


def _entry(content: bytes) -> Entry:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _forget_old(checkpoints_folder: Path, best_step: int | None, kept: int) -> None:
    for old in _by_step(checkpoints_folder)[:-kept]:
        if _step_of(old) != best_step:
            _forget(old)


def _forget(folder: Path) -> None:
    """Hidden before it is deleted, so that a kill leaves no half a checkpoint; one that cannot go may stay."""
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
