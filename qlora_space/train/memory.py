"""Memory of this process now and at its peak: of the GPU if it trains on one, else resident. GiB."""

import resource

import psutil
import torch

_GIB = 2**30


def memory_now_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.memory_allocated() / _GIB
    return psutil.Process().memory_info().rss / _GIB


def memory_peak_gib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
