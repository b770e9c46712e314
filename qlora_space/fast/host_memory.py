"""A frozen base in host memory: the GPU reads its packed weights over the bus, or copies them a layer ahead.

Modules see CUDA tensors whose memory is the host's (page-locked and mapped), so that all code that reads weights works
unchanged: the comparison with the plain path, evaluations, generation. A fast step copies the weights of the next layer
while it computes one, which costs no time where a layer takes longer than its copy.
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

    def __init__(self, owners: Sequence[tuple[nn.Module, str]]) -> None:
        """owners: (module, name) of each contiguous parameter or buffer to move. Raises MemoryError."""
        self._owners = owners
        self._layout: list[
            tuple[int, Tensor]
        ] = []  # its offset in bytes, and a meta tensor like it
        held, size = [getattr(*owner).data for owner in owners], 0
        for tensor in held:
            self._layout.append((size, torch.empty_like(tensor, device="meta")))
            size += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        self.bytes = _host_bytes(size)
        self._host_views = self.views(_mapped(self.bytes) if held[0].is_cuda else self.bytes)
        for view, tensor in zip(self._host_views, held, strict=True):
            view.copy_(tensor)
        self.bind()

    def bind(self, views: Sequence[Tensor] = ()) -> None:
        """Let the modules read from `views` of other memory with the same bytes, or from the host again."""
        for (module, name), view in zip(self._owners, views or self._host_views, strict=True):
            getattr(module, name).data = view

    def views(self, memory: Tensor) -> list[Tensor]:
        """The tensors as they lie in `memory`, uint8 (n,)."""
        views = []
        for start, like in self._layout:
            piece = memory[start : start + like.numel() * like.element_size()]
            views.append(piece.view(like.dtype).view(like.shape))
        return views


def move_to_host(layer: nn.Module) -> None:
    """Move a decoder layer's packed weights to host memory: bitsandbytes' `weight`, or `codes` of other linears.

    The layer gets an attribute `host_block`, which the fast step reads ahead. Raises MemoryError.
    """
    found: list[tuple[nn.Module, str]] = []
    for module in layer.modules():
        if isinstance(module, Linear4bit):
            found.append((module, "weight"))
        elif "codes" in dict(module.named_buffers(recurse=False)):
            found.append((module, "codes"))
    layer.host_block = HostBlock(found)  # type: ignore[assignment]


class HostPrefetcher:
    """Copies layers' blocks to the device: one in use, one on its way. On a CPU a copy is there at once."""

    def __init__(self, blocks: Sequence[HostBlock], device: torch.device) -> None:
        self._blocks = blocks
        size = max(len(block.bytes) for block in blocks)
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds = [-1, -1]  # index of the layer in each slot
        self._ready: list[torch.cuda.Event | None] = [None, None]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._views = [[block.views(slot) for slot in self._slots] for block in blocks]
        self._bound: HostBlock | None = None

    def enter(self, index: int, following: int) -> None:
        """Whatever is queued next reads layer `index` from the device; layer `following` is fetched meanwhile."""
        self.leave()
        slot = self._fetch(index, 0)
        if (ready := self._ready[slot]) is not None:
            torch.cuda.current_stream().wait_event(ready)
        self._bound = self._blocks[index]
        self._bound.bind(self._views[index][slot])
        if 0 <= following < len(self._blocks):
            self._fetch(following, 1 - slot)

    def leave(self) -> None:
        """The modules read from the host again."""
        if self._bound is not None:
            self._bound.bind()
            self._bound = None

    def _fetch(self, index: int, slot: int) -> int:
        """The slot with layer `index`: `slot`, unless it is in one already."""
        if index in self._holds:
            return self._holds.index(index)
        self._holds[slot] = index
        source = self._blocks[index].bytes
        target = self._slots[slot][: len(source)]
        if self._stream is None:
            target.copy_(source)
            return slot
        # Work that is queued already may still read the slot.
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
    array = _CudaArray(memory)
    # The tensor is an argument so that its memory outlives the lock.
    weakref.finalize(array, _unlock, memory).atexit = False
    return torch.as_tensor(array, device="cuda")


class _CudaArray:
    """Tells torch where the bytes are; under unified addressing the GPU knows them by the host's address."""

    def __init__(self, memory: Tensor) -> None:
        layout = {"shape": (len(memory),), "typestr": "|u1", "data": (memory.data_ptr(), False)}
        self.__cuda_array_interface__ = layout | {"version": 3, "strides": None}


def _unlock(memory: Tensor) -> None:
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(memory.data_ptr())
