"""Layer inputs in pinned host memory, copied on a stream of their own and fetched one layer ahead."""

import torch

Tensor = torch.Tensor


class Offloader:
    def __init__(self) -> None:
        self._host: dict[int, Tensor] = {}
        self._fetched: dict[int, tuple[Tensor, torch.cuda.Event]] = {}
        self._stream: torch.cuda.Stream | None = None

    def store(self, index: int, x: Tensor) -> None:
        """Start copying x (T, H) to the host."""
        stream = self._side_stream(x.device)
        host = self._host.get(index)
        if host is None or host.shape != x.shape:
            host = self._host[index] = torch.empty_like(x, device="cpu", pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(x, non_blocking=True)
        x.record_stream(stream)

    def load(self, index: int) -> Tensor:
        """The stored x; also starts to fetch the one before it."""
        if index not in self._fetched:
            self._fetch(index)
        x, ready = self._fetched.pop(index)
        ready.wait()
        x.record_stream(torch.cuda.current_stream())
        if index - 1 in self._host:
            self._fetch(index - 1)
        return x

    def _fetch(self, index: int) -> None:
        host, device = self._host[index], torch.device("cuda", torch.cuda.current_device())
        stream = self._side_stream(device)
        with torch.cuda.stream(stream):
            x = host.to(device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(stream)
        self._fetched[index] = (x, ready)

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return self._stream
