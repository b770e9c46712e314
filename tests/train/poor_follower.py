"""A follower whose GPU takes one row at a time: `python -m tests.train.poor_follower`, arguments as for `follow`."""

import sys
from pathlib import Path
from typing import Any

import torch

from qlora_space.fast import FastStep
from qlora_space.runs import RunFolder
from qlora_space.train.follower import follow


def main(folder: str, rank: str, world: str, store_file: str, base_folder: str) -> int:
    original = FastStep.__call__

    def call(self: FastStep, inputs: Any, num_items: Any) -> Any:
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, inputs, num_items)

    FastStep.__call__ = call  # type: ignore[method-assign]
    run = RunFolder(Path(folder))
    return follow(run, int(rank), int(world), Path(store_file), Path(base_folder))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
