"""A layer's saved tensors in pinned host memory, copied on a stream of their own and fetched one layer ahead.

The bus copies while the GPU computes: over PCIe 5 a layer's input takes less time than the layer. A tensor on the GPU
is freed only after the main stream has waited for its copy, so that its memory is reused in order.
"""

from collections.abc import Mapping

import torch

Tensor = torch.Tensor
Tensors = dict[str, Tensor]
_PIECE_BYTES = 2**28  # torch rounds pinned memory up to a power of two: large tensors lie in pieces


class Offloader:
    """last: the layer whose tensors are needed first, so that a policy may leave them on the GPU."""

    def __init__(self, last: int) -> None:
        self.last = last
        self._host: dict[tuple[int, str], list[Tensor]] = {}
        self._shapes: dict[tuple[int, str], torch.Size] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._storing: tuple[torch.cuda.Event, Mapping[str, Tensor]] | None = None
        self._fetched: dict[int, tuple[Tensors, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None

    def store(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Start copying the CUDA tensors of layer `index` to the host."""
        self._finish_storing()
        self._names[index] = tuple(tensors)
        self._fetched.pop(index, None)  # of a backward pass that was cut off
        stream = self._side_stream(next(iter(tensors.values())).device)
        with torch.cuda.stream(stream):
            for name, x in tensors.items():
                for host, piece in zip(self._host_pieces(index, name, x), _pieces(x), strict=True):
                    host.copy_(piece, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        self._storing = (done, tensors)

    def load(self, index: int) -> Tensors:
        """What was stored for layer `index`; also starts to fetch what the layer before it stored."""
        self.fetch(index)
        tensors, ready = self._fetched.pop(index)
        self.fetch(index - 1)
        torch.cuda.current_stream().wait_event(ready)
        return tensors

    def _finish_storing(self) -> None:
        if self._storing is not None:
            torch.cuda.current_stream().wait_event(self._storing[0])
            self._storing = None

    def _host_pieces(self, index: int, name: str, x: Tensor) -> list[Tensor]:
        key = (index, name)
        if self._shapes.get(key) != x.shape:
            self._host.pop(key, None)
            self._host[key] = [
                torch.empty_like(p, device="cpu", pin_memory=True) for p in _pieces(x)
            ]
            self._shapes[key] = x.shape
        return self._host[key]

    def fetch(self, index: int) -> None:
        """Start copying back what layer `index` stored, unless that has started already."""
        self._finish_storing()
        if index not in self._names or index in self._fetched:
            return
        device = torch.device("cuda", torch.cuda.current_device())
        tensors = {}
        for name in self._names[index]:
            dtype = self._host[index, name][0].dtype
            tensors[name] = torch.empty(self._shapes[index, name], dtype=dtype, device=device)
        stream = self._side_stream(device)
        with torch.cuda.stream(stream):
            for name, x in tensors.items():
                for host, piece in zip(self._host[index, name], _pieces(x), strict=True):
                    piece.copy_(host, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(stream)
        self._fetched[index] = (tensors, ready)

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        """What is queued on it next starts after everything that is queued on the main stream now."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    return x.flatten().split(_PIECE_BYTES // x.element_size())
