"""What this machine has, asked of the driver and the kernel; torch is not needed."""

import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pynvml

from qlora_space.facts import Hardware

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")  # of this container, where there is one


def read_hardware(home: Path) -> Hardware:
    """The first GPU, or the CPU where there is none. `home` is where files will be written."""
    existing = next(p for p in (home, *home.parents) if p.exists())
    disk_free_gib = shutil.disk_usage(existing).free / _GIB
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return _read_gpu(cores, disk_free_gib) or _read_cpu(cores, disk_free_gib)


def _read_gpu(cores: int, disk_free_gib: float) -> Hardware | None:
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not index.isdigit():  # "" and "-1" hide all GPUs
        return None
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(int(index))
        memory: Any = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(gpu)
        name = pynvml.nvmlDeviceGetName(gpu)
    except pynvml.NVMLError:
        return None
    return Hardware(
        name=name if isinstance(name, str) else name.decode(),
        device="cuda",
        memory_gib=round(memory.total / _GIB, 2),
        free_gib=round(memory.free / _GIB, 2),
        cpu_cores=cores,
        has_bf16=tuple(capability) >= (8, 0),
        has_fp8=tuple(capability) >= (8, 9),  # Ada; Hopper is (9, 0)
        disk_free_gib=round(disk_free_gib, 2),
    )


def _read_cpu(cores: int, disk_free_gib: float) -> Hardware:
    memory = psutil.virtual_memory()
    limit, free = memory.total, memory.available
    if (most := _cgroup_bytes("memory.max")) is not None:
        limit = min(limit, most)
        free = min(free, max(0, limit - (_cgroup_bytes("memory.current") or 0)))
    return Hardware(
        name=f"CPU, {cores} core{'s' if cores != 1 else ''}",
        device="cpu",
        memory_gib=round(limit / _GIB, 2),
        free_gib=round(free / _GIB, 2),
        cpu_cores=cores,
        disk_free_gib=round(disk_free_gib, 2),
    )


def _cgroup_bytes(name: str) -> int | None:
    """None where there is no such limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
