"""Finds near duplicates among texts, by MinHash sketches of word triples (bottom-k sketches).

A. Broder, "On the resemblance and containment of documents", 1997.
"""

import re
import zlib
from collections import Counter, defaultdict

import numpy as np

_WORDS = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_SKETCH_SIZE = 32
_MIN_WORDS = 20  # in shorter texts one changed number makes another task
_MAX_CHARS = 20_000
_MIN_SIMILARITY = 0.8  # Jaccard similarity of the triples
_MAX_TEXTS_PER_HASH = 64  # what more texts share is a phrase of the dataset
_MIX = np.uint64(0x9E3779B97F4A7C15)


class NearDuplicates:
    """Texts seen so far. The same texts in the same order always give the same matches."""

    def __init__(self) -> None:
        self._sketches: list[np.ndarray] = []
        self._keys: list[int] = []
        self._by_hash: dict[int, list[int]] = defaultdict(list)

    def match(self, text: str, key: int = 0, *, add: bool = True) -> int | None:
        """The key of an earlier text that is nearly this one; else None, and this one is added."""
        sketch = _sketch(text)
        if sketch is None:
            return None
        values = sketch.tolist()
        shared = Counter(index for value in values for index in self._by_hash.get(value, ()))
        for index, _ in shared.most_common(3):
            if _similarity(sketch, self._sketches[index]) >= _MIN_SIMILARITY:
                return self._keys[index]
        if add:
            for value in values:
                if len(self._by_hash[value]) < _MAX_TEXTS_PER_HASH:
                    self._by_hash[value].append(len(self._sketches))
            self._sketches.append(sketch)
            self._keys.append(key)
        return None


def _sketch(text: str) -> np.ndarray | None:
    """The smallest hashes of the word triples, sorted uint64 (at most 32,). None for a short text."""
    text = text[:_MAX_CHARS].lower()
    words = _WORDS.findall(text)
    if len(text) > 15 * len(words):
        words = list(text)  # a script without spaces
    if len(words) < _MIN_WORDS:
        return None
    hashes = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in words], np.uint64)
    last = len(hashes) - _SHINGLE_WORDS + 1
    triples = np.zeros(last, np.uint64)
    for offset in range(_SHINGLE_WORDS):
        triples = (triples ^ hashes[offset : offset + last]) * _MIX
        triples ^= triples >> np.uint64(29)
    distinct = np.unique(triples)
    return distinct[:_SKETCH_SIZE]


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of the triples, estimated from the smallest hashes of their union."""
    union = np.union1d(one, other)[:_SKETCH_SIZE]
    both = np.intersect1d(np.intersect1d(one, other, assume_unique=True), union)
    return len(both) / len(union)
