"""One name per operation: a Triton kernel for CUDA tensors, plain torch for all others.

Products with fp32 results are here, too: gradients of adapters are summed over tokens and micro-batches without being
rounded to bf16 in between.
"""

from types import ModuleType
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type
from torch import nn

from qlora_space.fast import formulas

Tensor = torch.Tensor
_tables: dict[tuple[str, torch.device], Tensor] = {}


def on(x: Tensor) -> ModuleType:
    """kernels or formulas, whichever takes x."""
    if not x.is_cuda:
        return formulas
    from qlora_space.fast import kernels

    return kernels


def dequantize(linear: nn.Module, out: Tensor) -> None:
    """Write a linear's weight to `out` (N, K): a plain one, bitsandbytes' 4 bits (the same bits as bitsandbytes), or
    that of a linear with a method `dequantize_into(out)`."""
    weight: Any = linear.weight
    state = getattr(weight, "quant_state", None)
    if hasattr(linear, "dequantize_into"):
        linear.dequantize_into(out)  # type: ignore[operator]
    elif state is None:
        out.copy_(weight)
    elif not weight.is_cuda:
        out.copy_(dequantize_4bit(weight.data, state))
    else:
        nested = None
        if state.nested:
            two = state.state2
            nested = (two.code, two.absmax, state.offset, two.blocksize)
        table = _table(state.quant_type, weight.device)
        on(out).dequantize(weight.data, state.absmax, nested, table, state.blocksize, out)


def _table(quant_type: str, device: torch.device) -> Tensor:
    if (quant_type, device) not in _tables:
        _tables[quant_type, device] = get_4bit_type(quant_type, device=device).float()
    return _tables[quant_type, device]


def product_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, kept in the precision of the accumulator (float64 stays float64)."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    wide = torch.promote_types(a.dtype, torch.float32)
    return a.to(wide) @ b.to(wide)


def add_product_fp32(to: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """to += scale (a @ b); `to` has the precision of the accumulator."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(to, a, b, out_dtype=torch.float32, alpha=scale, out=to)
    else:
        to.addmm_(a.to(to.dtype), b.to(to.dtype), alpha=scale)


def scaled_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype, is_fast: bool
) -> Tensor:  # fmt: skip
    """(x x_scale) (weight scale)ᵀ + bias of FP8 matrices (T, K) and (N, K); x_scale: (T, 1), scale: one number.

    is_fast: sum with the chip's fast accumulator.
    """
    if not x.is_cuda:
        wide = torch.promote_types(dtype, torch.float32)
        y = (x.to(wide) * x_scale) @ (weight.to(wide) * scale).t()
        return (y if bias is None else y + bias).to(dtype)
    scales = scale.expand(1, weight.shape[0]).contiguous()
    return torch._scaled_mm(
        x, weight.t(), x_scale, scales, bias, out_dtype=dtype, use_fast_accum=is_fast
    )
