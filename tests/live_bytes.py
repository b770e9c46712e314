"""Counts the bytes of tensors that are alive on a CPU, where torch has no such statistics."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Within its context. now, peak: bytes of storages that were made in it. least_width: only those of tensors whose
    last axis has as many elements or more count."""

    def __init__(self, least_width: int = 0) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._least_width = least_width
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        for tensor in _tensors((args, kwargs)):  # whatever is not known yet was made before
            self._note(tensor.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            is_wide = tensor.ndim > 0 and tensor.shape[-1] >= self._least_width
            storage = tensor.untyped_storage()
            self._note(storage, storage.nbytes() if is_wide else 0)
        return out

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _tensors(values: object) -> list[torch.Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, torch.Tensor)]
