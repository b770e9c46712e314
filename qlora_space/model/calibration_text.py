"""The text for calibration, heal and gate: half the user's own rows, half general text."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from qlora_space.core.demo import GENERAL_FILE
from qlora_space.data import Prepared
from qlora_space.lowbit.windows import Windows, cut_windows
from qlora_space.plan.speed import CALIBRATION_TOKENS

_HELDOUT_TOKENS = {"cpu": 2**12, "cuda": 2**15}
_LONGEST_WINDOW = {"cpu": 512, "cuda": 2048}


@dataclass(frozen=True)
class Calibration:
    """Windows for one base and one dataset. heldout: in words, which text the held-out windows are of."""

    windows: Windows
    heldout: str

    @property
    def sha256(self) -> str:
        """Of everything that a result can depend on; part of the names of stored files."""
        digest = hashlib.sha256(str(self.windows.num_calibration).encode())
        for part in (self.windows.ids, self.windows.is_text):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


def calibration_for(
    prepared: Prepared | None, tokenizer: Any, *, is_demo: bool, longest: int, device: str
) -> Calibration:
    """Half of the calibration from the training rows, as far as they go, the rest general text.

    Held-out windows are the dataset's own evaluation rows, or the last general text where there are none. `longest`:
    most tokens of a window.
    """
    kind = device.split(":")[0]
    length, wanted = min(longest, _LONGEST_WINDOW[kind]), CALIBRATION_TOKENS[kind]
    general = cut_windows(_general(tokenizer, is_demo), length, wanted + _HELDOUT_TOKENS[kind])
    rows: list[list[int]] = []
    held: list[list[int]] = []
    if prepared is not None:
        train = Dataset.from_file(str(prepared.train_file)).shuffle(seed=0, keep_in_memory=True)
        rows = cut_windows(train["input_ids"], length, wanted // 2)
        if prepared.manifest.eval_rows:
            evaluation = Dataset.from_file(str(prepared.eval_file))
            held = cut_windows(evaluation["input_ids"], length, _HELDOUT_TOKENS[kind])
    heldout = "your held-out rows"
    if not held:
        count = max(1, min(_HELDOUT_TOKENS[kind] // length, len(general) // 4))
        general, held, heldout = general[:-count], general[-count:], "general text"
    calibration = rows + general[: max(1, wanted // length - len(rows))]
    return Calibration(Windows.from_token_ids(calibration, held, length), heldout)


def _general(tokenizer: Any, is_demo: bool) -> Iterator[list[int]]:
    """Token ids of the demo's own kind of text, or of Python's own language reference: English and code."""
    for text in _demo_texts() if is_demo else _python_topics():
        yield tokenizer(text, add_special_tokens=False)["input_ids"]


def _demo_texts() -> Iterable[str]:
    return [json.loads(line)["text"] for line in GENERAL_FILE.read_text("utf-8").splitlines()]


def _python_topics() -> Iterable[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out: then only the user's rows are used
        return []
    return [topics[name] for name in sorted(topics)]
