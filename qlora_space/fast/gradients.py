"""All adapter gradients of a model as one piece of fp32 memory, shown to the optimizer as each weight's `.grad`."""

from collections.abc import Sequence

import torch

from qlora_space.fast.linear import FusedLinear

Tensor = torch.Tensor


class Gradients:
    """One fill empties them, and they stay where they are: a captured step can add to them."""

    def __init__(self, linears: Sequence[FusedLinear]) -> None:
        first = linears[0].a_parameters[0]
        size = sum(p.numel() for linear in linears for p in linear.parameters)
        self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        self._pairs: list[tuple[torch.nn.Parameter, Tensor]] = []
        start = 0
        for linear in linears:
            views = []
            for p in linear.parameters:
                views.append(self.flat[start : start + p.numel()].view_as(p))
                start += p.numel()
            self._pairs += zip(linear.parameters, views, strict=True)
            a, b = views[: len(linear.ranks)], views[len(linear.ranks) :]
            begin = a[0].storage_offset()
            size_a = sum(linear.ranks) * linear.inputs
            linear.a_grad = self.flat[begin : begin + size_a].view(-1, linear.inputs)
            linear.b_grads = b

    @property
    def are_taken(self) -> bool:
        """Nothing is there to add to: the optimizer has taken the last ones away, or there were none."""
        first, view = self._pairs[0]
        return first.grad is None or first.grad.data_ptr() != view.data_ptr()

    def begin(self) -> None:
        """Before each micro-step: start from nothing where the optimizer has taken the last ones away."""
        if self.are_taken:
            self.start()

    def start(self) -> None:
        """From nothing."""
        self.flat.zero_()
        for parameter, grad in self._pairs:
            parameter.grad = grad

    @torch.no_grad()
    def hold_weights(self) -> Tensor:
        """`flat` with the weights in it, to be sent; the next `begin` or `start` empties it."""
        torch._foreach_copy_([view for _, view in self._pairs], [p for p, _ in self._pairs])
        return self.flat

    @torch.no_grad()
    def take_weights(self) -> None:
        """The weights that were received in `flat`."""
        torch._foreach_copy_([p for p, _ in self._pairs], [view for _, view in self._pairs])
