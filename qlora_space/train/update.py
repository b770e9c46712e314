"""What an update gave, on its way from the GPU: the next one is queued before anybody reads it."""

from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Update:
    """An optimizer step that is queued, or done. The counts are those of the run up to it."""

    learning_rate: float
    tokens_seen: int
    trained_tokens: int
    _figures: Tensor  # loss and gradient norm, fp32 (2,) in host memory; there when `_arrived` is
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, loss: Tensor, norm: Tensor, learning_rate: float, tokens_seen: int, trained_tokens: int
    ) -> "Update":  # fmt: skip
        """loss and norm: of the whole update, one number each. Does not wait for them."""
        figures = torch.stack([t.detach().float().reshape(()) for t in (loss, norm)])
        arrived = None
        if figures.is_cuda:
            on_gpu, figures = figures, torch.empty(2, pin_memory=True)
            figures.copy_(on_gpu, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)
            arrived.record()
        return cls(learning_rate, tokens_seen, trained_tokens, figures, arrived)

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm; waits until the GPU has come to them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._figures.tolist()
        return loss, norm
