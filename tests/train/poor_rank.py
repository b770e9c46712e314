"""A further process whose GPU takes one row at a time: `python -m tests.train.poor_rank`, with a run folder."""

import sys
from typing import Any

import torch

from qlora_space.fast import FastStep
from qlora_space.places.worker import main

_original = FastStep.__call__


def _call(self: FastStep, inputs: Any, num_items: Any) -> Any:
    if len(inputs["input_ids"]) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return _original(self, inputs, num_items)


if __name__ == "__main__":
    FastStep.__call__ = _call  # type: ignore[method-assign]
    raise SystemExit(main(["train", sys.argv[1]]))
