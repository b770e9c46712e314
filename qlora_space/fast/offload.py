"""A layer's kept tensors in pinned host memory, copied on a stream of their own and fetched one layer ahead.

A tensor is let go only after the main stream has waited for its copy, so that memory is used again in order.
"""

from collections.abc import Mapping

import torch

Tensor = torch.Tensor
Tensors = dict[str, Tensor]


class Offloader:
    """last: the layer whose tensors are needed first, so that a rung may leave them on the GPU."""

    def __init__(self, last: int) -> None:
        self.last = last
        self._host: dict[tuple[int, str], Tensor] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._leaving: tuple[torch.cuda.Event, Mapping[str, Tensor]] | None = None
        self._fetched: dict[int, tuple[Tensors, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None

    def store(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Start copying to the host."""
        self._finish_leaving()
        self._names[index] = tuple(tensors)
        self._fetched.pop(index, None)  # of a backward pass that was cut off
        stream = self._side_stream(next(iter(tensors.values())).device)
        with torch.cuda.stream(stream):
            for name, x in tensors.items():
                self._place(index, name, x).copy_(x, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        self._leaving = (done, tensors)

    def load(self, index: int) -> Tensors:
        """What was stored; also starts to fetch what lies before it."""
        self.fetch(index)
        tensors, ready = self._fetched.pop(index)
        self.fetch(index - 1)
        torch.cuda.current_stream().wait_event(ready)
        return tensors

    def _finish_leaving(self) -> None:
        if self._leaving is not None:
            torch.cuda.current_stream().wait_event(self._leaving[0])
            self._leaving = None

    def _place(self, index: int, name: str, x: Tensor) -> Tensor:
        host = self._host.get((index, name))
        if host is None or host.shape != x.shape:
            host = torch.empty_like(x, device="cpu", pin_memory=True)
            self._host[index, name] = host
        return host

    def fetch(self, index: int) -> None:
        """Start copying back, if it was stored and is not on its way."""
        self._finish_leaving()
        if index not in self._names or index in self._fetched:
            return
        device = torch.device("cuda", torch.cuda.current_device())
        hosts = {name: self._host[index, name] for name in self._names[index]}
        tensors = {name: torch.empty_like(host, device=device) for name, host in hosts.items()}
        stream = self._side_stream(device)
        with torch.cuda.stream(stream):
            for name, host in hosts.items():
                tensors[name].copy_(host, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(stream)
        self._fetched[index] = (tensors, ready)

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        """It starts after all that the main stream was told so far."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream
