"""Final norm, head and cross-entropy of the trained rows, a chunk of rows at a time; loss and gradient in one pass.

Only rows that predict a trained token are multiplied. The logits of a chunk become their own gradient in place and are
multiplied back at once, so that logits of all rows, tokens times vocabulary, are never there (as in Liger Kernel,
arXiv 2410.10989).
"""

from dataclasses import dataclass

import torch

from qlora_space.fast import ops

Tensor = torch.Tensor
# 1,024 rows fill an H200's multiprocessors in the product with the head; the bytes are those of a chunk's logits.
_CHUNK_ROWS, _CHUNK_BYTES = 1024, 2**29


@dataclass(frozen=True)
class Head:
    """weight: (V, H); norm: fp32 (H,); cap: logits are c tanh(z / c) (Gemma 2, arXiv 2408.00118), 0 for none."""

    weight: Tensor
    norm: Tensor
    eps: float
    cap: float

    def loss_sum(self, x: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Summed loss in nats, one fp32 number. x: (T, H); rows, targets: int64 (n,), targets of -100 count nothing."""
        return self._run(x[rows], targets, None)

    def loss_and_grad(
        self, x: Tensor, rows: Tensor, targets: Tensor, divisor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(loss_sum / divisor, its gradient (T, H)); divisor: fp32, one number on the device."""
        part = x[rows]
        loss = self._run(part, targets, divisor)
        grad = torch.zeros_like(x)
        grad[rows] = part
        return loss / divisor, grad

    def _run(self, x: Tensor, targets: Tensor, divisor: Tensor | None) -> Tensor:
        """Summed loss; with a divisor, x (n, H) is overwritten by its gradient."""
        op = ops.on(x)
        losses = []
        fitting = _CHUNK_BYTES // (self.weight.shape[0] * x.element_size())
        size = max(256, min(_CHUNK_ROWS, fitting // 256 * 256, len(x) // 4))
        for part, part_targets in zip(x.split(size), targets.split(size), strict=True):
            normed = op.rms_norm(part, self.norm, self.eps)[1]
            logits = normed @ self.weight.t()
            losses.append(op.cross_entropy(logits, part_targets, self.cap).sum())
            if divisor is not None:
                dnormed = logits @ self.weight
                part.copy_(op.rms_norm_backward(dnormed, part, self.norm, self.eps).div_(divisor))
            del logits  # else they stay while the next chunk's are made
        return torch.stack(losses).sum() if losses else x.new_zeros((), dtype=torch.float32)
