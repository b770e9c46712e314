"""Products with the frozen base in FP8 (e4m3, arXiv 2209.05433): about twice as fast on Ada and later, and not exact.

Inputs and gradients get a scale for each token, the weight one in all: e4m3 is a floating format, so weights that are
small beside the largest keep their 3 bits of mantissa. Adapters, norms, attention and head stay as they are, and so do
all weights: what is rounded is a copy.
"""

import torch

from qlora_space.fast import ops
from qlora_space.fast.formulas import FP8_LARGEST

Tensor = torch.Tensor
SMALLEST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)


def fp8_scale(weight: Tensor) -> Tensor:
    """One fp32 number for a weight (N, K): divided by it, the largest weight is 448, e4m3's largest number."""
    return (weight.abs().amax().float() / FP8_LARGEST).clamp_min(1e-12)


class Fp8Weight:
    """A weight (N, K) in e4m3, made from the dequantized one for each product: (N, K) for y, (K, N) for dx."""

    def __init__(self, dense: Tensor, scale: Tensor) -> None:
        self._dense: Tensor | None = dense
        self._scale = scale
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None

    def make_both(self) -> None:
        """Keep both forms, and not the dequantized one."""
        self._rows, self._columns = (
            self._quantized(is_transposed=False),
            self._quantized(is_transposed=True),
        )
        self._dense = None

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + bias (T, N), summed with the chip's fast accumulator, which rounds more."""
        rows = self._quantized(is_transposed=False) if self._rows is None else self._rows
        return self._multiply(x, rows, bias, is_fast=True)

    def input_grad(self, dy: Tensor) -> Tensor:
        """dy W (T, K), summed in full fp32, as most gradients are small beside the largest of their row."""
        columns = self._quantized(is_transposed=True) if self._columns is None else self._columns
        return self._multiply(dy, columns, None, is_fast=False)

    def _quantized(self, *, is_transposed: bool) -> Tensor:
        assert self._dense is not None
        return ops.on(self._dense).to_fp8(self._dense, self._scale, is_transposed=is_transposed)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, is_fast: bool) -> Tensor:
        quantized, scale = ops.on(x).quantize_rows(x)
        return ops.scaled_product(quantized, scale, weight, self._scale, bias, x.dtype, is_fast)
