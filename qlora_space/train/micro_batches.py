"""The rows of update after update, in portions."""

from collections import deque
from collections.abc import Iterator

import torch
from datasets import Dataset

from qlora_space.data.order import rows_of_step
from qlora_space.plan import Plan
from qlora_space.train.collator import PackedCollator
from qlora_space.train.oom import rows_per_step


class MicroBatches:
    """The rows of step after step in portions, endless. A step has `accumulation` portions."""

    def __init__(
        self,
        rows: Dataset,
        collate: PackedCollator,
        plan: Plan,
        first_step: int,
        at_once: int,
    ) -> None:
        """at_once: rows of a portion, of all GPUs together."""
        self._rows, self._collate, self._plan = rows, collate, plan
        self._portions = self._read(first_step, at_once)
        self._waiting: deque[dict[str, torch.Tensor]] = deque()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield self._waiting.popleft() if self._waiting else next(self._portions)

    def read_ahead(self) -> None:
        """One more portion, kept until its turn."""
        self._waiting.append(next(self._portions))

    def _read(self, step: int, at_once: int) -> Iterator[dict[str, torch.Tensor]]:
        size = rows_per_step(self._plan)
        while True:
            order = rows_of_step(step, size, len(self._rows), self._plan.seed).tolist()
            for start in range(0, size, at_once):
                portion = order[start : start + at_once]
                yield self._collate([self._rows[i] for i in portion])
            step += 1
