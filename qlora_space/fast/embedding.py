"""An embedding table in pinned host memory: the GPU reads the few rows of a batch over the bus, or keeps a copy."""

import torch
from torch import nn

from qlora_space.fast import ops

Tensor = torch.Tensor


class HostEmbedding(nn.Module):
    """Takes the place of an nn.Embedding; ids on the GPU in, (..., H) on the GPU out. Frozen."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        # Not buffers: nothing else may move them.
        self._table = torch.empty_like(table.detach(), device="cpu", pin_memory=True).copy_(table)
        self._kept: Tensor | None = None
        self._device = table.device

    @property
    def weight(self) -> Tensor:
        return self._table

    @property
    def num_bytes(self) -> int:
        """Of the table, in either place."""
        return self._table.numel() * self._table.element_size()

    def keep_weight(self) -> None:
        """Read from a copy on the GPU, until `forget_weight`."""
        if self._kept is None:
            self._kept = self._table.to(self._device, non_blocking=True)

    def forget_weight(self) -> None:
        self._kept = None

    def forward(self, ids: Tensor) -> Tensor:
        table = self._table if self._kept is None else self._kept
        rows = ops.on(ids).gather(table, ids.reshape(-1))
        return rows.view(*ids.shape, -1)


def move_embedding_to_host(base: nn.Module) -> nn.Module | None:
    """Frees the table's GPU memory; returns the module that was there. None, and nothing done, where the head is the
    same table or more than a lookup is done. The GPU's table is gone: `move_embedding_back` makes another.
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


def move_embedding_back(base: nn.Module, embed: nn.Module, device: torch.device) -> None:
    base.set_input_embeddings(embed.to(device))  # type: ignore[operator]
