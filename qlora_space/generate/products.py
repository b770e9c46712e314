"""The frozen product of a packed linear, as fast as this device makes it for the few rows of answers.

On a CPU codes are unpacked once and kept while answers are made: a step of a small batch only reads weights, and
unpacking them costs many times the product. On a GPU a kernel reads the codes once for all rows (few_rows.py).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn
from torch.nn import functional as F

from qlora_space.generate.row_adapters import Product, is_packed, with_adapter

Tensor = torch.Tensor
_SHARE_OF_MEMORY = 0.5  # of what is free, for unpacked weights


class Products:
    """Makes the product of each linear of a model; what it unpacked is kept for all."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, few_rows: ModuleType | None = None
    ) -> None:
        """few_rows: the kernels, where they are to be used."""
        self._dtype, self._few_rows = dtype, few_rows
        self._room = psutil.virtual_memory().available * _SHARE_OF_MEMORY
        self._model = model

    def of(self, linear: nn.Module) -> Product:
        """`linear` itself where nothing is faster."""
        if not is_packed(linear):
            return with_adapter(linear.forward)
        if linear.weight.is_cuda:  # type: ignore[union-attr]
            product = self._few_rows and self._few_rows.product_of(linear)
            return product or with_adapter(linear.forward)
        num_bytes = linear.in_features * linear.out_features * self._dtype.itemsize  # type: ignore[operator]
        if num_bytes > self._room:
            return with_adapter(linear.forward)
        self._room -= num_bytes
        return with_adapter(_unpacked(linear, self._dtype))


def _unpacked(linear: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = weight_of(linear, dtype)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    return lambda x: F.linear(x.to(dtype), weight, bias).to(x.dtype)


def weight_of(linear: Any, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs) in `dtype`, as the linear's own product has it."""
    if hasattr(linear, "dequantized"):
        return linear.dequantized(dtype)
    return dequantize_4bit(linear.weight.data, linear.weight.quant_state).to(dtype)
