"""The text that covariances, heal and gate see: the user's own rows mixed half and half with general text."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from qlora_space.core.demo import GENERAL_FILE
from qlora_space.data import Prepared
from qlora_space.lowbit.stream import Windows
from qlora_space.plan.speed import CALIBRATION_TOKENS

_HELDOUT_TOKENS = {"cpu": 2**12, "cuda": 2**15}
_LONGEST_WINDOW = {"cpu": 512, "cuda": 2048}


@dataclass(frozen=True)
class Texts:
    """Windows for one base and one dataset; `heldout` says in words what the gate is measured on."""

    windows: Windows
    heldout: str

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(str(self.windows.calibration).encode())
        for part in (self.windows.ids, self.windows.is_text):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


def texts_for(
    prepared: Prepared | None, tokenizer: Any, *, is_demo: bool, longest: int, device: str
) -> Texts:
    """Half of the calibration from the training rows, as far as they go, the rest general text; held-out rows apart.

    Without rows, or without held-out rows, the last general text is held out. `longest` bounds a window in tokens.
    """
    kind = device.split(":")[0]
    length, wanted = min(longest, _LONGEST_WINDOW[kind]), CALIBRATION_TOKENS[kind]
    general = _windows(_general(tokenizer, is_demo), length, wanted + _HELDOUT_TOKENS[kind])
    rows: list[list[int]] = []
    held: list[list[int]] = []
    if prepared is not None:
        train = Dataset.from_file(str(prepared.train_file)).shuffle(seed=0, keep_in_memory=True)
        rows = _windows(train["input_ids"], length, wanted // 2)
        if prepared.manifest.eval_rows:
            asked = Dataset.from_file(str(prepared.eval_file))
            held = _windows(asked["input_ids"], length, _HELDOUT_TOKENS[kind])
    words = "your held-out rows"
    if not held:
        kept = max(1, min(_HELDOUT_TOKENS[kind] // length, len(general) // 4))
        general, held, words = general[:-kept], general[-kept:], "general text"
    calibration = rows + general[: max(1, wanted // length - len(rows))]
    return Texts(_padded(calibration, held, length), words)


def _general(tokenizer: Any, is_demo: bool) -> Iterator[list[int]]:
    """The demo's own kind of text; else the language reference that comes with every Python: English and code."""
    for text in _demo_texts() if is_demo else _python_topics():
        yield tokenizer(text, add_special_tokens=False)["input_ids"]


def _demo_texts() -> Iterable[str]:
    return [json.loads(line)["text"] for line in GENERAL_FILE.read_text("utf-8").splitlines()]


def _python_topics() -> Iterable[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions take it out: then the user's rows are all there is
        return []
    return [topics[name] for name in sorted(topics)]


def _windows(documents: Iterable[list[int]], length: int, tokens: int) -> list[list[int]]:
    """One document after the other, cut into windows; only the last may be shorter, and only if it is alone."""
    ids: list[int] = []
    for document in documents:
        ids += document
        if len(ids) >= tokens:
            break
    count = max(1, len(ids) // length) if ids else 0
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def _padded(calibration: list[list[int]], held: list[list[int]], length: int) -> Windows:
    rows = calibration + held
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    is_text = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_text[row, : len(tokens)] = True
    return Windows(ids, is_text, len(calibration))
