"""The protocol between the processes of a run with several GPUs.

Rows go from the run's worker to a follower as frames through its stdin: a letter, the number of bytes, safetensors.
Answers come back as lines. Weights and gradients go from GPU to GPU, by NCCL (gloo on a CPU).
"""

import os
import struct
import time
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from safetensors.torch import load, save

Tensor = torch.Tensor
_HEADER = struct.Struct("!cQ")
# Nothing listens to other machines. data_parallel.py and the end of stdin notice processes that ended: torch's own
# watchdog would abort this process before it can report how the run ended.
_ENVIRONMENT = {
    "NCCL_SOCKET_IFNAME": "lo",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
_FOREVER = timedelta(days=30)
_POLL_SECONDS = 0.0005


# Answers of a follower; any other line is its last, and says why.
ANSWERS = LOADED, READY, DONE, OUT_OF_MEMORY = "loaded", "ready", "done", "out of memory"


class Frame(Enum):
    """What a follower is to do; it does one after the other."""

    FP8 = b"8"  # multiply the base in FP8 from now on
    WEIGHTS = b"w"  # receive the adapter, start from no gradient
    ROWS = b"r"  # add their gradients
    REPORT = b"t"  # answer whether all went well since WEIGHTS
    SUM = b"s"  # add loss and gradients to those of the worker


def frame_bytes(frame: Frame, tensors: dict[str, Tensor] | None = None) -> bytes:
    body = save(tensors) if tensors else b""
    return _HEADER.pack(frame.value, len(body)) + body


def read_frames(stream: BinaryIO) -> Iterator[tuple[Frame, dict[str, Tensor]]]:
    """Until the other end is closed, also in the middle of a frame."""
    while len(header := stream.read(_HEADER.size)) == _HEADER.size:
        letter, size = _HEADER.unpack(header)
        body = stream.read(size)
        if len(body) < size:
            return
        yield Frame(letter), load(body) if body else {}


def connect(store_file: Path, rank: int, world: int, device: str) -> Any:
    """The process group of a run (torch's c10d.Backend). May wait for all others.

    Not by dist.init_process_group: transformers and accelerate must not believe that they were launched many times.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    store = dist.FileStore(str(store_file), world)
    kind: Any = dist.ProcessGroupNCCL if device == "cuda" else dist.ProcessGroupGloo
    return kind(store, rank, world, timeout=_FOREVER)


def check_group(group: Any, rank: int, world: int, device: str) -> None:
    """NCCL makes its connections, and takes its memory, now. Raises RuntimeError if a sum is wrong; hangs if it does.

    A stream never waits here, so that another thread can go on with the GPU when the group is aborted.
    """
    ones = torch.full((1,), float(rank == 0), device=device)
    for begin in (group.broadcast, group.reduce):
        work = begin(ones, 0)
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()
    if rank == 0 and ones.item() != world:
        raise RuntimeError(f"the sum of {world} ones came as {ones.item()}")
