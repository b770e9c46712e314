"""LowBitLinear: a linear layer with a frozen weight of 2, 3, 4 or 8 bit codes, which peft takes for an nn.Linear."""

from typing import Any

import torch
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.grid import Grid, Quantized, unpacked
from qlora_space.lowbit.packing import packed_width


class LowBitLinear(nn.Linear):
    """y = x Q^T + bias, with n inputs and m outputs; differentiable with respect to x and the bias only.

    Buffers: codes (m, bytes) uint8, scales (m, n / group_size) fp16, zeros (m, bytes) uint8, and `order` (n) int32
    where the columns were grouped in another order (GPTQ's desc_act). `weight` is an empty parameter that has the
    dtype and device that peft reads; merging an adapter into it fails. Raises ModelError where group_size does not
    divide n.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: Grid,
        *,
        bias: bool = False,
        has_order: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if in_features % grid.group_size:
            raise ModelError(
                f"A layer has {in_features} inputs, which groups of {grid.group_size} do not divide.",
                "Choose a smaller group_size.",
            )
        self.in_features, self.out_features, self.grid = in_features, out_features, grid
        groups = in_features // grid.group_size
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None
        sizes = {
            "codes": ((out_features, packed_width(in_features, grid.bits)), torch.uint8),
            "scales": ((out_features, groups), torch.float16),
            "zeros": ((out_features, packed_width(groups, grid.zero_bits)), torch.uint8),
        }
        for name, (size, kind) in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=kind, device=device))
        order = torch.arange(in_features, dtype=torch.int32, device=device) if has_order else None
        self.register_buffer("order", order)

    @classmethod
    def from_quantized(
        cls, quantized: Quantized, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> "LowBitLinear":
        """Pack codes whose columns are in their own order; bias (m) or None. dtype: of bias and `weight`."""
        m, n = quantized.codes.shape
        device = quantized.codes.device
        layer = cls(n, m, quantized.grid, bias=bias is not None, dtype=dtype, device=device)
        for name, buffer in quantized.packed().items():
            getattr(layer, name).copy_(buffer)
        if layer.bias is not None and bias is not None:
            layer.bias.data.copy_(bias)
        return layer

    @property
    def bits_per_weight(self) -> float:
        """Codes, scales, zeros and the order of the columns."""
        return self.grid.bits_per_weight + (32 / self.out_features if self.order is not None else 0)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(out_features, in_features), computed at every call."""
        size = (self.out_features, self.in_features)
        out = torch.empty(size, dtype=dtype, device=self.codes.device)
        self.dequantize_into(out)
        return out

    def dequantize_into(self, out: torch.Tensor) -> None:
        """Write the weight to `out` (out_features, in_features), in its dtype."""
        if self.codes.is_cuda and self.grid.group_size % 8 == 0:
            from qlora_space.lowbit import kernels

            kernels.dequantize(self.grid, self.codes, self.scales, self.zeros, out)
        else:
            parts = unpacked(self.grid, self.in_features, self.codes, self.scales, self.zeros)
            out.copy_(parts.dequantized())
        if self.order is not None:
            out.copy_(out[:, self.order.long()])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        output = _Product.apply(input, self)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.grid}"


class _Product(torch.autograd.Function):
    """x Q^T. Q is dequantized again in the backward pass instead of being saved for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: LowBitLinear) -> torch.Tensor:
        ctx.layer = layer
        return x @ layer.dequantized(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] @ ctx.layer.dequantized(grads[0].dtype), None


def bits_per_weight(model: nn.Module) -> float:
    """Mean over all weights in LowBitLinears, of everything that is stored for them."""
    layers = [m for m in model.modules() if isinstance(m, LowBitLinear)]
    sizes = [layer.in_features * layer.out_features for layer in layers]
    stored = sum(x.bits_per_weight * size for x, size in zip(layers, sizes, strict=True))
    return stored / sum(sizes)
