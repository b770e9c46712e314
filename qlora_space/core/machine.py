"""The hardware of this machine, from NVML and the kernel; torch is not needed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml

from qlora_space.core.errors import BackendError
from qlora_space.core.facts import Hardware

_GIB = 2**30
_FREE_TOLERANCE = (
    0.05  # of its memory: a GPU with so much less free than the first would run out before it
)
_BUSY = 1.5  # runnable processes a core: more than one run can cause
_CPU_INFO = Path("/proc/cpuinfo")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one on ARM
_CGROUP = Path("/sys/fs/cgroup")  # of this container, if any


def read_hardware(home: Path) -> Hardware:
    """The first GPU and how many are like it, or the CPU; free disk space where `home` is or will be."""
    existing = next(p for p in (home, *home.parents) if p.exists())
    disk_free_gib = shutil.disk_usage(existing).free / _GIB
    cores = cpu_cores()
    return _read_gpu(cores, disk_free_gib) or _read_cpu(cores, disk_free_gib)


def cpu_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_shared(device: Literal["cpu", "cuda"], num_processes: int = 1) -> bool:
    """Whether others work where a run of so many processes does: on its GPUs, or on the cores of this machine.

    A run on the CPU uses all cores itself: more runnable processes than it can cause are others'.
    """
    if device == "cuda":
        return any(count > 1 for count in _processes_on_gpus()[:num_processes])
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1) > _BUSY
    except (AttributeError, OSError):
        return False


def _processes_on_gpus() -> list[int]:
    """How many compute on each GPU that this process may use; those of other containers are counted, too."""
    counts: list[int] = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in _visible():
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            counts.append(len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    return counts


def take_first_gpu() -> tuple[str, ...]:
    """Let this process see one GPU only; returns the others of its kind, as CUDA_VISIBLE_DEVICES names them.

    Those with as much free memory come first. transformers would spread a step over all GPUs that it sees. Call it
    before torch initializes CUDA, which would number the fastest GPU first, not as NVML does.
    """
    gpus = _gpus()
    if not gpus:
        return ()
    first, *others = gpus
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(first.index)}
    same = [gpu for gpu in others if gpu.name == first.name]
    return tuple(str(gpu.index) for gpu in sorted(same, key=lambda gpu: not _is_like(gpu, first)))


def take_gpu(number: int) -> None:
    """Let this process see one GPU only, by its number among those that it may use. Raises BackendError."""
    gpus = _gpus()
    if not gpus:
        return
    if number >= len(gpus):
        raise BackendError(
            f"This process is number {number} of its machine (LOCAL_RANK), which has {len(gpus)} GPUs.",
            "Start fewer processes on it.",
        )
    chosen = str(gpus[number].index)
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": chosen}


def gpu_bytes_of_this_process() -> int | None:
    """What it holds on the first GPU that it sees, CUDA's context among it; None where NVML does not say, as in
    containers that number processes themselves."""
    with contextlib.suppress(pynvml.NVMLError, StopIteration):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(next(_visible()))
        processes: Any = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return next(p.usedGpuMemory for p in processes if p.pid == os.getpid())
    return None


def has_compiler() -> bool:
    """Whether Triton finds what it builds its launchers with."""
    return any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))


def why_no_gpu() -> str:
    """A sentence for a machine without a usable GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-"):
        return "CUDA_VISIBLE_DEVICES names a MIG slice, and slices are not known here: name a whole GPU."
    return "There is no NVIDIA GPU: only small bases can be trained here."


@dataclass(frozen=True)
class _Gpu:
    """Memory in bytes."""

    index: int
    name: str
    total: int
    free: int
    capability: tuple[int, int]


def _gpus() -> list[_Gpu]:
    """The GPUs that this process may use."""
    found: list[_Gpu] = []
    with contextlib.suppress(pynvml.NVMLError):  # as in CUDA, a missing one hides those after it
        pynvml.nvmlInit()
        found.extend(_gpu(index) for index in _visible())
    return found


def _is_like(gpu: _Gpu, first: _Gpu) -> bool:
    return gpu.name == first.name and first.free - gpu.free <= _FREE_TOLERANCE * first.total


def _visible() -> Iterator[int]:
    """Numbers of the GPUs in CUDA_VISIBLE_DEVICES, or of all."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        yield from range(pynvml.nvmlDeviceGetCount())
        return
    for name in map(str.strip, allowed.split(",")):
        number = _number_of(name)
        if number is None:  # "" and "-1" hide all
            return
        yield number


def _number_of(name: str) -> int | None:
    """The number of a GPU named by number, UUID or the beginning of a UUID, as CUDA allows; None if there is none."""
    if name.isdigit():
        return int(name)
    if not name.startswith("GPU-"):
        return None
    found = [i for i in range(pynvml.nvmlDeviceGetCount()) if _uuid(i).startswith(name)]
    return found[0] if len(found) == 1 else None


def _uuid(index: int) -> str:
    uuid: Any = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
    return uuid if isinstance(uuid, str) else uuid.decode()


def _gpu(index: int) -> _Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
    capability: Any = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    name: Any = pynvml.nvmlDeviceGetName(handle)
    name = name if isinstance(name, str) else name.decode()
    return _Gpu(index, name, memory.total, memory.free, tuple(capability))


def _read_gpu(cores: int, disk_free_gib: float) -> Hardware | None:
    gpus = _gpus()
    if not gpus:
        return None
    first = gpus[0]
    return Hardware(
        name=first.name,
        device="cuda",
        num_gpus=sum(_is_like(gpu, first) for gpu in gpus),
        memory_gib=round(first.total / _GIB, 2),
        free_gib=round(first.free / _GIB, 2),
        cpu_cores=cores,
        has_bf16=first.capability >= (8, 0),
        has_fp8=first.capability >= (8, 9),  # Ada; Hopper is (9, 0)
        disk_free_gib=round(disk_free_gib, 2),
        host_free_gib=round(_host_memory()[1] / _GIB, 2),
    )


def _read_cpu(cores: int, disk_free_gib: float) -> Hardware:
    limit, free = _host_memory()
    return Hardware(
        name=f"CPU, {cores} core{'s' if cores != 1 else ''}",
        device="cpu",
        memory_gib=round(limit / _GIB, 2),
        free_gib=round(free / _GIB, 2),
        cpu_cores=cores,
        has_bf16=cpu_has_bf16(),
        disk_free_gib=round(disk_free_gib, 2),
    )


def cpu_has_bf16() -> bool:
    """Whether the CPU has bf16 products; others are several times as fast in fp32 (docs/LOG.md)."""
    try:
        words = set(_CPU_INFO.read_text().split())
    except OSError:
        return False
    return not words.isdisjoint(_BF16_FLAGS)


def _host_memory() -> tuple[int, int]:
    """Total and free bytes, within the container's limit."""
    memory = psutil.virtual_memory()
    limit, free = memory.total, memory.available
    if (most := _cgroup_bytes("memory.max")) is not None:
        limit = min(limit, most)
        held = (_cgroup_bytes("memory.current") or 0) - _cgroup_cache_bytes()
        free = min(free, max(0, limit - held))
    return limit, free


def _cgroup_cache_bytes() -> int:
    """Page cache, which the kernel frees when memory is needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    sizes = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(sizes.get(name, 0)) for name in ("active_file", "inactive_file"))


def _cgroup_bytes(name: str) -> int | None:
    """None without such a limit."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
