"""All adapter gradients of a model in one piece of fp32 memory; each weight's `.grad` is a view of it.

One fill empties them all, one reduction sums them over GPUs, and their addresses never change, so that a captured CUDA
graph can add to them.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

Tensor = torch.Tensor


class Owner(Protocol):
    """A linear, or whatever else has adapters."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]: ...

    def take_gradients(self, views: Sequence[Tensor]) -> None: ...


class Gradients:
    """flat: (P,) of the adapter's P weights, in their dtype and on their device."""

    def __init__(self, owners: Sequence[Owner]) -> None:
        first = owners[0].parameters[0]
        size = sum(p.numel() for owner in owners for p in owner.parameters)
        self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        self._pairs: list[tuple[torch.nn.Parameter, Tensor]] = []
        start = 0
        for owner in owners:
            views = []
            for p in owner.parameters:
                views.append(self.flat[start : start + p.numel()].view_as(p))
                start += p.numel()
            self._pairs += zip(owner.parameters, views, strict=True)
            owner.take_gradients(views)

    @property
    def are_reset(self) -> bool:
        """Whether `.grad` was reset, by `zero_grad` or since there were none: the next micro-step starts an update."""
        first, view = self._pairs[0]
        return first.grad is None or first.grad.data_ptr() != view.data_ptr()

    def begin(self) -> None:
        """Before each micro-step: zero them if `.grad` was reset since the last one."""
        if self.are_reset:
            self.start()

    def start(self) -> None:
        """Zero them, and point every `.grad` at them."""
        self.flat.zero_()
        for parameter, grad in self._pairs:
            parameter.grad = grad

    def clear(self) -> None:
        """Set `.grad` of every adapter weight to None."""
        for parameter, _ in self._pairs:
            parameter.grad = None

    @torch.no_grad()
    def pack_weights(self) -> Tensor:
        """`flat`, filled with the weights for a broadcast; the next `begin` or `start` zeroes it."""
        torch._foreach_copy_([view for _, view in self._pairs], [p for p, _ in self._pairs])
        return self.flat

    @torch.no_grad()
    def unpack_weights(self) -> None:
        """Copy the weights that a broadcast has put into `flat` to the parameters."""
        torch._foreach_copy_([p for p, _ in self._pairs], [view for _, view in self._pairs])
