"""Finds texts that are nearly the same: sketches of word triples, compared where they share a value."""

import re
import zlib
from collections import Counter, defaultdict

import numpy as np

_WORDS = re.compile(r"\w+")
_SHINGLE = 3
_SKETCH = 32
_FEWEST_WORDS = 20  # in shorter texts one changed figure makes another task
_MOST_CHARS = 20_000
_ALIKE = 0.8  # of the triples of both texts
_MOST_PER_VALUE = 64  # what more texts share is a phrase of the dataset
_MIX = np.uint64(0x9E3779B97F4A7C15)


class NearTexts:
    """Texts seen so far. The same texts in the same order always give the same answers."""

    def __init__(self) -> None:
        self._sketches: list[np.ndarray] = []
        self._keys: list[int] = []
        self._having: dict[int, list[int]] = defaultdict(list)

    def match(self, text: str, key: int = 0, *, add: bool = True) -> int | None:
        """The key of an earlier text that is nearly this one; else None, and it is remembered."""
        sketch = _sketch(text)
        if sketch is None:
            return None
        values = sketch.tolist()
        shared = Counter(index for value in values for index in self._having.get(value, ()))
        for index, _ in shared.most_common(3):
            if _likeness(sketch, self._sketches[index]) >= _ALIKE:
                return self._keys[index]
        if add:
            for value in values:
                if len(self._having[value]) < _MOST_PER_VALUE:
                    self._having[value].append(len(self._sketches))
            self._sketches.append(sketch)
            self._keys.append(key)
        return None


def _sketch(text: str) -> np.ndarray | None:
    """The smallest hashes of the word triples: like texts have like sketches. None for a short text."""
    text = text[:_MOST_CHARS].lower()
    words = _WORDS.findall(text)
    if len(text) > 15 * len(words):
        words = list(text)  # a script without spaces
    if len(words) < _FEWEST_WORDS:
        return None
    hashes = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in words], np.uint64)
    last = len(hashes) - _SHINGLE + 1
    triples = np.zeros(last, np.uint64)
    for offset in range(_SHINGLE):
        triples = (triples ^ hashes[offset : offset + last]) * _MIX
        triples ^= triples >> np.uint64(29)
    distinct = np.unique(triples)
    return distinct[:_SKETCH]


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the triples that both have, told from the smallest of their union."""
    union = np.union1d(one, other)[:_SKETCH]
    both = np.intersect1d(np.intersect1d(one, other, assume_unique=True), union)
    return len(both) / len(union)
