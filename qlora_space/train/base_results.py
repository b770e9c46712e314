"""What a base gives without an adapter, kept for further runs on it: answers and losses, row by row.

A row is known by a hash of all that its result depends on beside the base, so that a run on the same base and rows
asks the base for nothing twice. How answers are scored is no part of it.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_space.core.atomic import write_atomically
from qlora_space.core.errors import DiskFull
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder

_MOST_ENTRIES = 4000
_MOST_FILES = 20
_LIBRARIES = ("torch", "transformers", "bitsandbytes")
Loss = tuple[float, int]
"""Sum in nats, and the trained tokens that it is over."""


class BaseResults:
    """Of one base. Nothing is kept where `file` is None."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries: dict[str, Any] = _entries_in(file)
        self._has_changed = False

    def answer(self, key: str) -> str | None:
        found = self._entries.get(key)
        return found if isinstance(found, str) else None

    def loss(self, key: str) -> Loss | None:
        match self._entries.get(key):
            case [float() as total, int() as tokens]:
                return total, tokens
        return None

    def add(self, key: str, value: str | Loss) -> None:
        self._entries.pop(key, None)
        self._entries[key] = value
        self._has_changed = True

    def save(self) -> None:
        """The newest few thousand. A full disk loses them, and nothing else."""
        if self._file is None or not self._has_changed:
            return
        newest = dict(list(self._entries.items())[-_MOST_ENTRIES:])
        with suppress(DiskFull, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(newest))
            _delete_old(self._file.parent)
        self._has_changed = False


def base_results(run: RunFolder, plan: Plan) -> BaseResults:
    """Those of the run's base, as it is loaded here, for its owner."""
    packed = run.packed_base_file
    parts = {
        "base": [plan.base.sha, plan.bits, plan.group_size, plan.is_low_bit],
        "packed": packed.read_text() if packed.is_file() else "",
        "device": plan.hardware.name,
        "libraries": [importlib.metadata.version(name) for name in _LIBRARIES],
    }
    return BaseResults(run.home.base_results_folder(run.owner) / f"{_hash(parts)}.json")


def answer_key(prompt: Sequence[int], limit: int, stop_token_ids: Sequence[int]) -> str:
    """Of a greedy answer of at most `limit` tokens."""
    return _hash(["answer", list(prompt), limit, sorted(stop_token_ids)])


def loss_key(row: Mapping[str, Any]) -> str:
    return _hash(["loss", list(row["input_ids"]), list(row["labels"]), list(row["seq_lengths"])])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _entries_in(file: Path | None) -> dict[str, Any]:
    """None of a file that is not there, or is damaged."""
    try:
        found = json.loads(file.read_bytes()) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _delete_old(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime)
    for file in files[_MOST_FILES:]:
        file.unlink(missing_ok=True)
