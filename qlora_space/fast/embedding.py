"""An embedding table in pinned host memory: the GPU reads the few rows of a batch over the bus, or caches a copy.

A table of 152k tokens and 4,096 hidden is 1.2 GB in bf16, of which a micro-batch of 8,192 tokens reads 67 MB at most.
"""

import torch
from torch import nn

from qlora_space.fast import ops

Tensor = torch.Tensor


class HostEmbedding(nn.Module):
    """Takes the place of a frozen nn.Embedding of shape (V, H) that lies on a GPU."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        # Not buffers: nothing else may move them.
        self._table = torch.empty_like(table.detach(), device="cpu", pin_memory=True).copy_(table)
        self._cached: Tensor | None = None
        self._device = table.device

    @property
    def weight(self) -> Tensor:
        """(V, H), in host memory."""
        return self._table

    @property
    def num_bytes(self) -> int:
        """Of the table, in either memory."""
        return self._table.numel() * self._table.element_size()

    def cache_weight(self) -> None:
        """Read from a copy on the GPU, until `release_weight`."""
        if self._cached is None:
            self._cached = self._table.to(self._device, non_blocking=True)

    def release_weight(self) -> None:
        """Read over the bus again, and free the copy."""
        self._cached = None

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (...) on the GPU to (..., H) on the GPU."""
        table = self._table if self._cached is None else self._cached
        rows = ops.on(ids).gather(table, ids.reshape(-1))
        return rows.view(*ids.shape, -1)


def move_embedding_to_host(base: nn.Module) -> nn.Embedding | None:
    """Free the GPU memory of a model's embedding table, and return the module that a HostEmbedding replaces.

    None, and nothing is done, where it is not on a GPU, is trained, is the head's too, or does more than a lookup.
    """
    embed = base.get_input_embeddings()  # type: ignore[operator]
    is_plain = type(embed) is nn.Embedding and embed.max_norm is None
    if not is_plain or embed.weight is base.get_output_embeddings().weight:  # type: ignore
        return None
    if not embed.weight.is_cuda or embed.weight.requires_grad:
        return None
    host = HostEmbedding(embed.weight)
    base.set_input_embeddings(host)  # type: ignore[operator]
    embed.weight.data = host.weight
    return embed


def move_embedding_back(base: nn.Module, embed: nn.Embedding, device: torch.device) -> None:
    """Undo `move_embedding_to_host`: the module and parameter that were there, with a table on `device` again."""
    embed.weight.data = embed.weight.data.to(device)
    base.set_input_embeddings(embed)  # type: ignore[operator]
