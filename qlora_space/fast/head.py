"""The loss of the trained rows: final norm, head and cross-entropy, a piece of the rows at a time."""

from dataclasses import dataclass

import torch

from qlora_space.fast import ops

Tensor = torch.Tensor
_CHUNK_BYTES = 2**28


@dataclass(frozen=True)
class Head:
    """weight (V, H); norm: fp32 (H,); cap: c tanh(z / c), 0 for none."""

    weight: Tensor
    norm: Tensor
    eps: float
    cap: float

    def loss_sum(self, x: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Nats over all trained rows, fp32, of x (T, H)."""
        return _HeadFunction.apply(x, rows, targets, self)  # type: ignore[no-any-return]

    def run(self, x: Tensor, targets: Tensor, *, with_grad: bool) -> tuple[Tensor, Tensor | None]:
        """Sum of losses, and its gradient for x (n, H), which takes the place of x."""
        losses = []
        size = max(256, _CHUNK_BYTES // (self.weight.shape[0] * x.element_size()) // 256 * 256)
        for part, wanted in zip(x.split(size), targets.split(size), strict=True):
            normed = ops.on(x).rms_norm(part, self.norm, self.eps)[1]
            logits = normed @ self.weight.t()
            losses.append(ops.on(x).cross_entropy(logits, wanted, self.cap).sum())
            if with_grad:
                dnormed = logits @ self.weight
                part.copy_(ops.on(x).rms_norm_backward(dnormed, part, self.norm, self.eps))
        total = torch.stack(losses).sum() if losses else x.new_zeros((), dtype=torch.float32)
        return total, x if with_grad else None


class _HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, targets: Tensor, head: Head) -> Tensor:
        loss, dx = head.run(x[rows], targets, with_grad=ctx.needs_input_grad[0])
        ctx.save_for_backward(dx, rows)
        ctx.shape = x.shape
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        dx, rows = ctx.saved_tensors
        out = dx.new_zeros(ctx.shape)
        out[rows] = dx.mul_(grad.to(dx.dtype))
        return out, None, None, None
