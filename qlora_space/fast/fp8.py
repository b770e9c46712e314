"""Products with the frozen base in FP8 (e4m3): about twice as fast where the chip has them, and not exact.

Inputs and gradients get a scale for each token, the weight one in all: e4m3 is a floating format, so weights that are
small beside the largest keep their 3 bits of mantissa. Adapters, norms, attention and head stay as they are.
"""

import torch

from qlora_space.fast import ops
from qlora_space.fast.formulas import FP8_LARGEST

Tensor = torch.Tensor
SMALLEST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)


def fp8_scale(weight: Tensor) -> Tensor:
    """fp32, one number: what the largest weight of (N, K) divided by it is e4m3's largest."""
    return (weight.abs().amax().float() / FP8_LARGEST).clamp_min(1e-12)


class Fp8Weight:
    """A weight (N, K) in e4m3, made from the dequantized one when it is first asked for: rows for y, columns for dx."""

    def __init__(self, dense: Tensor, scale: Tensor) -> None:
        self._dense: Tensor | None = dense
        self._scale = scale
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None

    def make_both(self) -> None:
        """Both forms, in place of the dense one."""
        self._rows, self._columns = self._made(is_transposed=False), self._made(is_transposed=True)
        self._dense = None

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + bias (T, N). Sums as the chip does it fastest."""
        rows = self._made(is_transposed=False) if self._rows is None else self._rows
        return self._multiply(x, rows, bias, is_fast=True)

    def input_grad(self, dy: Tensor) -> Tensor:
        """dy W (T, K). Sums in full fp32: gradients are small beside their largest."""
        columns = self._made(is_transposed=True) if self._columns is None else self._columns
        return self._multiply(dy, columns, None, is_fast=False)

    def _made(self, *, is_transposed: bool) -> Tensor:
        assert self._dense is not None
        return ops.on(self._dense).to_fp8(self._dense, self._scale, is_transposed=is_transposed)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, is_fast: bool) -> Tensor:
        quantized, scale = ops.on(x).quantize_rows(x)
        return ops.scaled_product(quantized, scale, weight, self._scale, bias, x.dtype, is_fast)
