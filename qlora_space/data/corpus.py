"""Token sequences of many documents in flat arrays, and the choice of those that are held out."""

from __future__ import annotations  # array is not subscriptable when Python 3.11 runs it

import hashlib
import heapq
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from qlora_space.data.documents import Tokenized
from qlora_space.data.prepared import IGNORED_LABEL, Document
from qlora_space.data.proof import Tokens
from qlora_space.data.rows import Example, RowProblem


@dataclass
class Corpus:
    """Documents end to end in flat arrays: 5 bytes a token, whatever the number of rows."""

    max_length: int
    ids: array[int] = field(default_factory=lambda: array("i"))
    trained: bytearray = field(default_factory=bytearray)
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    digests: list[bytes] = field(default_factory=list)
    row_of: array[int] = field(default_factory=lambda: array("q"))
    dropped: Counter[str] = field(default_factory=Counter)
    why: dict[str, str] = field(default_factory=dict)
    stops: set[int] = field(default_factory=set)
    rows_read: int = 0
    rows_truncated: int = 0
    shortest_prompt: int = 0

    def drop(self, problem: RowProblem) -> None:
        self.dropped[problem.code] += 1
        self.why.setdefault(problem.code, problem.message)

    def add(self, row: Tokenized) -> bool:
        """Take the row in; False if it cannot be used."""
        self.rows_read += 1
        if isinstance(row.outcome, RowProblem):
            self.drop(row.outcome)
            return False
        tokens = row.outcome
        # Plain text is cut into pieces instead: its rest is as good as its beginning.
        pieces = _pieces(tokens, self.max_length) if isinstance(row.example, str) else [tokens]
        if True not in pieces[0].trained[1 : self.max_length]:
            needed = tokens.trained.index(True, 1) + 1 if True in tokens.trained[1:] else 0
            self.shortest_prompt = min(self.shortest_prompt or needed, needed)
            self.drop(RowProblem("truncated_answer", f"{row.row.place}: the prompt fills it all."))
            return False
        self.rows_truncated += len(pieces) == 1 and True in tokens.trained[self.max_length :]
        self.stops.update(_last_of_runs(tokens))
        for piece in pieces:
            self._append(piece, row.digest)
        return True

    def _append(self, tokens: Tokens, digest: bytes) -> None:
        self.ids.extend(tokens.input_ids[: self.max_length])
        self.trained.extend(tokens.trained[: self.max_length])
        self.starts.append(len(self.ids))
        self.digests.append(digest)
        self.row_of.append(self.rows_read)

    def document(self, index: int) -> Document:
        """No loss on a document's first token: nothing of the same document comes before it."""
        window = slice(self.starts[index], self.starts[index + 1])
        ids = np.array(self.ids[window], np.int32)
        labels = np.where(np.frombuffer(self.trained[window], np.bool_), ids, IGNORED_LABEL)
        labels[0] = IGNORED_LABEL
        return Document(ids, labels.astype(np.int32))

    def trained_tokens(self, index: int) -> int:
        return self.trained.count(1, self.starts[index] + 1, self.starts[index + 1])

    def length(self, index: int) -> int:
        return self.starts[index + 1] - self.starts[index]


class HeldOut:
    """Keeps the rows with the smallest hash of seed and content: the same ones in any order."""

    def __init__(self, seed: int, most: int) -> None:
        self._seed, self._most = seed, most
        self._heap: list[tuple[int, bytes]] = []
        self.examples: dict[bytes, Example] = {}

    def offer(self, digest: bytes, example: Example) -> None:
        if digest in self.examples or not self._most:
            return
        keyed = hashlib.blake2b(digest, digest_size=7, key=str(self._seed).encode()).digest()
        heapq.heappush(self._heap, (-int.from_bytes(keyed), digest))
        self.examples[digest] = example
        if len(self._heap) > self._most:
            del self.examples[heapq.heappop(self._heap)[1]]

    def keep(self, count: int) -> None:
        while len(self._heap) > count:
            del self.examples[heapq.heappop(self._heap)[1]]


def _pieces(tokens: Tokens, max_length: int) -> list[Tokens]:
    """Nearly equal pieces, so that no tiny rest is left."""
    total = len(tokens.input_ids)
    count = -(-total // max_length)
    edges = [round(total * index / count) for index in range(count + 1)]
    return list(_cut(tokens, edges))


def _cut(tokens: Tokens, edges: list[int]) -> Iterator[Tokens]:
    for start, end in itertools.pairwise(edges):
        yield Tokens(tokens.input_ids[start:end], tokens.trained[start:end])


def _last_of_runs(tokens: Tokens) -> set[int]:
    flags = [*tokens.trained, False]
    ids = enumerate(tokens.input_ids)
    return {token for index, token in ids if flags[index] and not flags[index + 1]}
