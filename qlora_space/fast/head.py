"""The loss of the trained rows: final norm, head and cross-entropy, a piece of the rows at a time."""

from dataclasses import dataclass

import torch

from qlora_space.fast import ops

Tensor = torch.Tensor
# 1,024 rows fill an H200's multiprocessors in the product with the head; the bytes are one piece's logits.
_CHUNK_ROWS, _CHUNK_BYTES = 1024, 2**29


@dataclass(frozen=True)
class Head:
    """weight (V, H); norm: fp32 (H,); cap: c tanh(z / c), 0 for none."""

    weight: Tensor
    norm: Tensor
    eps: float
    cap: float

    def loss_sum(self, x: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Nats over all trained rows, fp32, of x (T, H)."""
        return self._run(x[rows], targets, None)

    def loss_and_grad(self, x: Tensor, rows: Tensor, targets: Tensor, divisor: Tensor):
        """(loss_sum / divisor, its gradient (T, H)); divisor: fp32, one number on the device."""
        part = x[rows]
        loss = self._run(part, targets, divisor)
        grad = torch.zeros_like(x)
        grad[rows] = part
        return loss / divisor, grad

    def _run(self, x: Tensor, targets: Tensor, divisor: Tensor | None) -> Tensor:
        """Sum of losses; with a divisor, x (n, H) becomes its gradient."""
        op = ops.on(x)
        losses = []
        fitting = _CHUNK_BYTES // (self.weight.shape[0] * x.element_size())
        size = max(256, min(_CHUNK_ROWS, fitting // 256 * 256, len(x) // 4))
        for part, wanted in zip(x.split(size), targets.split(size), strict=True):
            normed = op.rms_norm(part, self.norm, self.eps)[1]
            logits = normed @ self.weight.t()
            losses.append(op.cross_entropy(logits, wanted, self.cap).sum())
            if divisor is not None:
                dnormed = logits @ self.weight
                part.copy_(op.rms_norm_backward(dnormed, part, self.norm, self.eps).div_(divisor))
        return torch.stack(losses).sum() if losses else x.new_zeros((), dtype=torch.float32)
