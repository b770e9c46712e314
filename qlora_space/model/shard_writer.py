"""Write a checkpoint of safetensors tensor by tensor: at most one shard of it is in memory."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from qlora_space.hub.download import INDEX_FILE

_SHARD_BYTES = 2 * 10**9


class ShardWriter:
    """Files are named as transformers looks for them when `close` has counted them. Raises OSError."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = self.num_bytes = 0
        self._shards: list[list[str]] = []

    @property
    def names(self) -> set[str]:
        """Of all tensors that were added."""
        return {name for shard in self._shards for name in shard} | set(self._pending)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._shard_bytes:
            self._write()
        self._pending[name] = tensor.cpu().contiguous()
        self._pending_bytes += size
        self.num_bytes += size

    def close(self) -> None:
        """Write the last shard, and the index where there are several."""
        self._write()
        total = len(self._shards)
        if total == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{total:05d}.safetensors"
            self._part(number).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=1))

    def _write(self) -> None:
        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
            self._pending, self._pending_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"
