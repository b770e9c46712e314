"""A frozen base in host memory: the GPU reads its packed weights over the bus, or copies them a layer ahead.

Modules see CUDA tensors whose memory is the host's (page-locked and mapped), so that all code that reads weights works
as ever: the comparison with the plain path, evaluations, generation. A fast step copies the weights of the layer after
the one that is being computed, which costs no time where a layer takes longer than its copy.
"""

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

Tensor = torch.Tensor
_ALIGNED = 256  # bytes, as torch allocates


class HostBlock:
    """Tensors of some modules in one piece of host memory. bytes: (n,) uint8 on the CPU."""

    def __init__(self, places: Sequence[tuple[nn.Module, str]]) -> None:
        """Moves there what each (module, name) holds, a contiguous parameter or buffer. Raises MemoryError."""
        self._places = places
        self._layout: list[tuple[int, Tensor]] = []  # where it begins, and an empty one like it
        held, size = [getattr(*place).data for place in places], 0
        for tensor in held:
            self._layout.append((size, torch.empty_like(tensor, device="meta")))
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        self.bytes = _host_bytes(size)
        self._home = self.views(_mapped(self.bytes) if held[0].is_cuda else self.bytes)
        for view, tensor in zip(self._home, held, strict=True):
            view.copy_(tensor)
        self.show()

    def show(self, views: Sequence[Tensor] = ()) -> None:
        """The modules read from these `views` of memory that holds the same bytes, or from the host again."""
        for (module, name), view in zip(self._places, views or self._home, strict=True):
            getattr(module, name).data = view

    def views(self, memory: Tensor) -> list[Tensor]:
        """Its tensors as they lie in `memory`."""
        views = []
        for start, like in self._layout:
            piece = memory[start : start + like.numel() * like.element_size()]
            views.append(piece.view(like.dtype).view(like.shape))
        return views


def move_to_host(layer: nn.Module) -> None:
    """The packed weights of a decoder layer: bitsandbytes' (`weight`), or those of a linear that has `codes`."""
    found: list[tuple[nn.Module, str]] = []
    for module in layer.modules():
        if isinstance(module, Linear4bit):
            found.append((module, "weight"))
        elif "codes" in dict(module.named_buffers(recurse=False)):
            found.append((module, "codes"))
    layer.host_block = HostBlock(found)  # type: ignore[assignment]


class Ahead:
    """Layers' blocks on the device, one in use and one on its way. On a CPU it is there at once."""

    def __init__(self, blocks: Sequence[HostBlock], device: torch.device) -> None:
        self._blocks = blocks
        size = max(len(block.bytes) for block in blocks)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds = [-1, -1]  # a layer each
        self._ready: list[torch.cuda.Event | None] = [None, None]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._views = [[block.views(slot) for slot in self._slots] for block in blocks]
        self._shown: HostBlock | None = None

    def enter(self, index: int, following: int) -> None:
        """What is told from here on reads layer `index` on the device; `following` is fetched meanwhile."""
        self.leave()
        slot = self._fetch(index, 0)
        if (ready := self._ready[slot]) is not None:
            torch.cuda.current_stream().wait_event(ready)
        self._shown = self._blocks[index]
        self._shown.show(self._views[index][slot])
        if 0 <= following < len(self._blocks):
            self._fetch(following, 1 - slot)

    def leave(self) -> None:
        """The modules read from the host again."""
        if self._shown is not None:
            self._shown.show()
            self._shown = None

    def _fetch(self, index: int, slot: int) -> int:
        """The slot that it is in, which is `slot` unless it is there already."""
        if index in self._holds:
            return self._holds.index(index)
        self._holds[slot] = index
        source = self._blocks[index].bytes
        target = self._slots[slot][: len(source)]
        if self._stream is None:
            target.copy_(source)
            return slot
        # What the GPU was told so far may still read what lies there.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._ready[slot] = torch.cuda.Event()
            self._ready[slot].record(self._stream)  # type: ignore[union-attr]
        return slot


def _host_bytes(size: int) -> Tensor:
    try:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    except OSError as error:
        raise MemoryError(f"the host has no {size:,} bytes") from error


def _mapped(memory: Tensor) -> Tensor:
    """A CUDA tensor over the same bytes, which stay page-locked as long as it lives."""
    cudart: Any = torch.cuda.cudart()
    if status := int(cudart.cudaHostRegister(memory.data_ptr(), len(memory), 0)):
        raise MemoryError(f"{len(memory):,} bytes cannot be page-locked (CUDA error {status})")
    shown = _CudaArray(memory)
    # The tensor is an argument so that its memory outlives the lock.
    weakref.finalize(shown, _unlock, memory).atexit = False
    return torch.as_tensor(shown, device="cuda")


class _CudaArray:
    """Tells torch where the bytes are; under unified addressing the GPU knows them by the host's address."""

    def __init__(self, memory: Tensor) -> None:
        where = {"shape": (len(memory),), "typestr": "|u1", "data": (memory.data_ptr(), False)}
        self.__cuda_array_interface__ = where | {"version": 3, "strides": None}


def _unlock(memory: Tensor) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(memory.data_ptr())
