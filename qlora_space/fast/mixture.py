"""A decoder layer whose MLP is a mixture of packed experts: attention as in layer.py, experts by their own module.

The experts keep nothing (qlora_space/experts, known here by its methods); of a layer's
mixture only the order of rows stays between forward and backward. The router is transformers' own module, through which
autograd goes back for its few numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qlora_space.fast import ops
from qlora_space.fast.layer import Layer, SavedActivations, StepContext
from qlora_space.fast.limits import LARGEST_RANK, Unsupported
from qlora_space.fast.policies import ActivationPolicy, LayerShape

Tensor = torch.Tensor


@dataclass
class Mixture:
    """router: T tokens (T, H) to the weights and numbers (T, k) of their experts; experts: packed; adapters: of its two
    products, None where there is none."""

    router: nn.Module
    experts: Any
    adapters: tuple[Any, Any]
    _gradients: tuple[Any, Any] = field(init=False, default=(None, None))

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for a in self.adapters if a is not None for p in (a.a, a.b)]

    def take_gradients(self, views: Sequence[Tensor]) -> None:
        """Where the gradients of `parameters` are to be added."""
        pairs = iter(zip(views[::2], views[1::2], strict=True))
        first, down = (a and a.gradients(*next(pairs)) for a in self.adapters)
        self._gradients = (first, down)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """(the experts' sum (T, H), the order of rows)."""
        weights, index = self._choose(x)
        routing = self.experts.route(index, x.dtype)
        return self.experts.product(x, weights, routing, self.adapters), routing

    def backward(self, dout: Tensor, x: Tensor, routing: Any) -> Tensor:
        """The gradient of x, through the experts and through the router."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            weights = self._choose(leaf)[0]
        dx, d_weights = self.experts.product_backward(
            dout, x, weights.detach(), routing, self.adapters, self._gradients
        )
        return dx.add_(torch.autograd.grad(weights, leaf, d_weights)[0])

    def _choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, numbers) of each token's experts, whatever else the router gives."""
        given = [t for t in self.router(x) if isinstance(t, Tensor)]
        (index,) = (t for t in given if not t.is_floating_point())
        (weights,) = (t for t in given if t.is_floating_point() and t.shape == index.shape)
        return weights, index


@dataclass(frozen=True)
class MixtureLayer(Layer):
    """gate_up and down are not there; the rest is as in a dense layer."""

    mixture: Mixture | None = None

    @property
    def linears(self):
        return (self.qkv, self.o)

    @property
    def adapters(self):
        return (self.qkv, self.o, self.mixture)

    @property
    def shape(self) -> LayerShape:
        """Of what policies decide: nothing of the experts is kept."""
        queries, keys = self.heads
        attended = self.o.inputs
        return LayerShape(
            self.qkv.inputs, attended, attended // queries * keys, mlp=0, is_sandwich=False
        )

    def _tiled_mlp(self, saved: SavedActivations, context: StepContext) -> Tensor:
        norms, mixture = self.norms, self._mixture()
        normed = ops.on(saved.middle).rms_norm(saved.middle, norms.mlp, norms.eps)[1]
        out, saved.routing = mixture.forward(normed)
        return out.add_(saved.middle)

    def _tiled_mlp_backward(
        self, dy: Tensor, saved: SavedActivations, policy: ActivationPolicy
    ) -> Tensor:
        norms, op, mixture = self.norms, ops.on(dy), self._mixture()
        normed = op.rms_norm(saved.middle, norms.mlp, norms.eps)[1]
        d_normed = mixture.backward(dy, normed, saved.routing)
        return op.rms_norm_backward(d_normed, saved.middle, norms.mlp, norms.eps, residual=dy)

    def _mixture(self) -> Mixture:
        assert self.mixture is not None
        return self.mixture


def mixture_of(mlp: nn.Module) -> Mixture | None:
    """The router and the experts of an MLP, None for one without packed experts.

    Raises Unsupported where there is more, such as a shared expert, or adapters that kernels do not take.
    """
    children = dict(mlp.named_children())
    experts: Any = children.pop("experts", None)
    if experts is None:
        return None
    base = experts.get_base_layer() if hasattr(experts, "get_base_layer") else experts
    if not hasattr(base, "product_backward"):
        raise Unsupported("its experts are not packed")
    if len(children) != 1 or list(mlp.parameters(recurse=False)):
        raise Unsupported(f"it has {', '.join(sorted(children))} beside its experts")
    adapters = experts.adapters_of_products() if experts is not base else (None, None)
    if any(a is not None and a.rank > LARGEST_RANK for a in adapters):
        raise Unsupported(f"the rank on experts is above {LARGEST_RANK}")
    return Mixture(next(iter(children.values())), base, adapters)
