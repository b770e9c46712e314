"""What stands between an expert's two products: gate and up to one activation, and back."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


class Gate:
    """The activation of an experts module of transformers, as that module computes it.

    Kernels take the two forms that nearly all have, silu and the tanh form of gelu on the first half times the second;
    any other (gpt-oss clamps both, interleaved) is computed and differentiated as it stands.
    """

    def __init__(self, original: nn.Module, width: int) -> None:
        module: Any = original
        has_gate = getattr(module, "has_gate", True)
        self._apply: Callable[[Tensor], Tensor] = module._apply_gate if has_gate else module.act_fn
        self.kind = _kind(self._apply, width) if has_gate else ""

    def forward(self, inner: Tensor, op: ModuleType) -> Tensor:
        """(S, I) of the first product (S, 2 I)."""
        return op.gated(inner, is_gelu=self.kind == "gelu") if self.kind else self._apply(inner)

    def backward(
        self, inner: Tensor, d: Tensor, weight: Tensor, op: ModuleType
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(activation (S, I) times weight, sums of d times activation (S), gradient of `inner`, overwritten).

        d: (S, I), the gradient of the activation but for the factor `weight` (S).
        """
        if self.kind and inner.is_cuda:
            acted, share = op.gated_backward(inner, d, weight, is_gelu=self.kind == "gelu")
            return acted, share, inner
        with torch.enable_grad():
            leaf = inner.detach().requires_grad_()
            acted = self._apply(leaf)
        grad = torch.autograd.grad(acted, leaf, d * weight[:, None].to(d.dtype))[0]
        acted = acted.detach()
        wide = torch.promote_types(d.dtype, torch.float32)
        share = (acted.to(wide) * d.to(wide)).sum(-1)
        return acted * weight[:, None].to(acted.dtype), share, grad


def _kind(apply: Callable[[Tensor], Tensor], width: int) -> str:
    """ "silu", "gelu" or "": found by trying, not by name."""
    probe = torch.linspace(-4, 12, 2 * width)
    gate, up = probe.chunk(2)
    got = apply(probe[None])[0]
    if got.shape != gate.shape:
        return ""
    known = {"silu": F.silu(gate), "gelu": F.gelu(gate, approximate="tanh")}
    return next((k for k, v in known.items() if torch.allclose(got, v * up, atol=1e-5)), "")
