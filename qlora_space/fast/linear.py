"""QLoRA linears that share an input, as one: y = x Wᵀ + s (x Aᵀ) Bᵀ, with peft's modules as the owners of all weights.

peft computes q, k and v one by one: three large products and three pairs of small ones, each of which reads x again.
Here it is one large product and one pair. T tokens, K inputs, N outputs of all parts, R the sum of their ranks; B is
block-diagonal (N, R), so that part p of the output sees only its own r_p columns. A and s B are copies in the compute
dtype, refreshed once per micro-step. LoRA: arXiv 2106.09685; over quantized weights: arXiv 2305.14314.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qlora_space.fast import ops
from qlora_space.fast.fp8 import Fp8Weight, fp8_scale

Tensor = torch.Tensor
Weight = Tensor | Fp8Weight


@dataclass
class FusedLinear:
    """Parts are peft LoRA layers with one adapter over (quantized) linears with the same input.

    a_grad: fp32 (R, K), the parts' gradients one under the other; b_grads: theirs, (N_p, r_p) each. Both are set
    by `Gradients` (gradients.py), which gives all linears of a model one piece of memory.
    """

    parts: Sequence[Any]
    dtype: torch.dtype
    a: Tensor = field(init=False)
    b: Tensor = field(init=False)
    bias: Tensor | None = field(init=False)
    a_grad: Tensor = field(init=False)
    b_grads: Sequence[Tensor] = field(init=False)
    is_fp8: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        adapters = [(p.lora_A["default"].weight, p.lora_B["default"].weight) for p in self.parts]
        self.a_parameters = [a for a, _ in adapters]
        self.b_parameters = [b for _, b in adapters]
        self.bases = [p.base_layer for p in self.parts]
        self.scales = [float(p.scaling["default"]) for p in self.parts]
        self.rows = [b.shape[0] for b in self.b_parameters]
        self.ranks = [a.shape[0] for a in self.a_parameters]
        self.inputs = self.a_parameters[0].shape[1]
        device = self.bases[0].weight.device
        self.a = torch.empty(sum(self.ranks), self.inputs, dtype=self.dtype, device=device)
        self.b = torch.zeros(sum(self.rows), sum(self.ranks), dtype=self.dtype, device=device)
        biases = [p.base_layer.bias for p in self.parts]
        self.bias = None if biases[0] is None else torch.cat(biases).to(self.dtype)
        self.a_views = list(self.a.split(self.ranks))
        self.b_views = self._blocks(self.b)
        self._cached: Weight | None = None
        self._fp8_scale: Tensor | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.a_parameters, *self.b_parameters]

    def take_gradients(self, views: Sequence[Tensor]) -> None:
        """Where the gradients of `parameters` are to be added: views of one piece of memory, one behind the other."""
        a, self.b_grads = views[: len(self.ranks)], views[len(self.ranks) :]
        whole = (sum(self.ranks), self.inputs)
        self.a_grad = a[0].as_strided(whole, (self.inputs, 1))

    def _blocks(self, matrix: Tensor) -> list[Tensor]:
        """The diagonal blocks of an (N, R) matrix."""
        columns = [m.split(self.ranks, 1) for m in matrix.split(self.rows)]
        return [part[i] for i, part in enumerate(columns)]

    def cache_weight(self) -> None:
        """Keep the weight as it is multiplied, until `release_weight`."""
        if self._cached is None:
            self._cached = self.weight()
            if isinstance(self._cached, Fp8Weight):
                self._cached.make_both()

    def release_weight(self) -> None:
        """Dequantize it anew each time, and free the copy."""
        self._cached = None

    def use_fp8(self, *, is_used: bool) -> None:
        """Multiply the base in FP8 from now on, or no longer."""
        self.release_weight()
        self.is_fp8 = is_used
        if is_used and self._fp8_scale is None:
            self._fp8_scale = fp8_scale(self._dequantized())

    def weight(self) -> Weight:
        """(N, K), dequantized: in the compute dtype, or for FP8 products."""
        if self._cached is not None:
            return self._cached
        dense = self._dequantized()
        return Fp8Weight(dense, self._fp8_scale) if self.is_fp8 else dense  # type: ignore[arg-type]

    def _dequantized(self) -> Tensor:
        out = torch.empty(sum(self.rows), self.inputs, dtype=self.dtype, device=self.a.device)
        for base, part in zip(self.bases, out.split(self.rows), strict=True):
            ops.dequantize(base, part)
        return out

    def product(self, x: Tensor, weight: Weight | None = None) -> Tensor:
        """x Wᵀ + bias, without the adapter's part."""
        w = self.weight() if weight is None else weight
        if isinstance(w, Fp8Weight):
            return w.product(x, self.bias)
        return x @ w.t() if self.bias is None else torch.addmm(self.bias, x, w.t())

    def forward(
        self,
        x: Tensor,
        weight: Weight | None = None,
        added: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y + added (T, N), h = x Aᵀ (T, R)); pass h where it is known.

        One pass over the large product adds all the rest: a product that adds to its output is up to 15 % slower.
        """
        h = x @ self.a.t() if h is None else h
        return ops.on(x).expand(h, self.b, None, added, self.product(x, weight)), h

    def base_input_grad(self, dy: Tensor, weight: Weight | None = None) -> Tensor:
        """dy W, without the adapter's part."""
        weight = self.weight() if weight is None else weight
        return weight.input_grad(dy) if isinstance(weight, Fp8Weight) else dy @ weight

    def input_grad(self, dy: Tensor, g: Tensor, weight: Weight | None = None) -> Tensor:
        """dx (T, K), with g = dy s B (T, R)."""
        weight = self.weight() if weight is None else weight
        if isinstance(weight, Fp8Weight):
            return ops.on(dy).expand(g, self.a.t(), to=weight.input_grad(dy))
        return ops.on(dy).expand(g, self.a.t()).addmm_(dy, weight)

    def add_weight_grads(self, dy: Tensor, g: Tensor, x: Tensor, h: Tensor) -> None:
        """dA += gᵀ x and dB += s dyᵀ h, in fp32; g = dy s B (T, R), h = x Aᵀ (T, R)."""
        ops.add_product_fp32(self.a_grad, g.t(), x)
        if len(self.b_grads) == 1:
            ops.add_product_fp32(self.b_grads[0], dy.t(), h, self.scales[0])
            return
        blocks = self._blocks(ops.product_fp32(dy.t(), h))
        for grad, block, scale in zip(self.b_grads, blocks, self.scales, strict=True):
            grad.add_(block, alpha=scale)

    def backward(
        self, dy: Tensor, x: Tensor, h: Tensor, weight: Weight | None = None, *, needs_dx: bool = True
    ) -> Tensor | None:  # fmt: skip
        """dx (T, K), if needed; the adapter's gradients are added to what is there."""
        g = dy @ self.b
        dx = self.input_grad(dy, g, weight) if needs_dx else None
        self.add_weight_grads(dy, g, x, h)
        return dx


def adapter_copier(linears: Sequence[FusedLinear]) -> Callable[[], None]:
    """A function that copies all fp32 adapters, as they are when it is called, to A and s B in the compute dtype."""
    sources = [p for linear in linears for p in linear.parameters]
    targets = [v for linear in linears for v in (*linear.a_views, *linear.b_views)]
    scales = [s for linear in linears for s in (*[1.0] * len(linear.parts), *linear.scales)]
    return ops.on(sources[0]).scaled_copies(sources, targets, scales)
