"""The frozen matrices of all experts of a layer, E of them, each (N, K) with N outputs and K inputs, packed.

A stack gives its matrices while they are multiplied; nothing else of it is ever in 16 bits.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type, quantize_4bit
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.experts.routing import Routing

Tensor = torch.Tensor
BLOCK = 64  # weights that share a scale
_BLOCKS_PER_SCALE = 256  # scales that share a scale of their own
_MOST_WEIGHTS = 2**31  # of a stack: bitsandbytes counts them in 32 bits


class Stack(Protocol):
    """What the products need of packed experts."""

    shape: tuple[int, int, int]

    def matrices(
        self, routing: Routing, dtype: torch.dtype, part: int = 0, parts: int = 1
    ) -> Tensor:
        """(E, N / parts, K): one of `parts` equal parts of each matrix; of experts without rows it may say anything."""
        ...


class Nf4Stack(nn.Module):
    """NF4 with double quantization, the numbers that bitsandbytes makes of the whole stack (arXiv 2305.14314, sec. 3).

    Buffers: codes uint8 (E N K / 2), two weights a byte; absmax uint8 (blocks); absmax2 fp32 (blocks / 256); code2
    fp32 (256); offset fp32, one number.
    """

    codes: Tensor
    absmax: Tensor
    absmax2: Tensor
    code2: Tensor
    offset: Tensor

    def __init__(self, shape: Sequence[int], parts: dict[str, Tensor]) -> None:
        super().__init__()
        experts, rows, columns = shape
        self.shape = (experts, rows, columns)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.register_buffer("table", nf4_table(self.codes.device))

    @classmethod
    def from_weight(cls, weight: Tensor) -> "Nf4Stack":
        """Pack (E, N, K) of any float dtype, on its device.

        Raises ModelError where a block would hold two experts, or there are too many weights.
        """
        experts, rows, columns = weight.shape
        if rows * columns % BLOCK or weight.numel() >= _MOST_WEIGHTS:
            raise ModelError(
                f"A layer of this base has {experts} experts of {rows} by {columns} weights, which cannot be packed in "
                f"blocks of {BLOCK}.",
                "Choose another base.",
            )
        return cls(weight.shape, _quantized(weight))

    def matrices(
        self, routing: Routing, dtype: torch.dtype, part: int = 0, parts: int = 1
    ) -> Tensor:
        """(E, N / parts, K): one of `parts` equal parts of each matrix, unpacked for experts that have rows."""
        out = empty_part(self.shape, parts, dtype, self.codes.device)
        if out.is_cuda:
            from qlora_space.experts import kernels

            kernels.dequantize_nf4(self, routing, part, out)
            return out
        for expert, count in enumerate(routing.counts):
            if count:
                out[expert] = self._matrix(expert).chunk(parts)[part]
        return out

    def _matrix(self, expert: int) -> Tensor:
        _, rows, columns = self.shape
        blocks = rows * columns // BLOCK
        scales = slice(expert * blocks, (expert + 1) * blocks)
        at = torch.arange(scales.start, scales.stop, device=self.codes.device) // _BLOCKS_PER_SCALE
        absmax = self.code2[self.absmax[scales].long()] * self.absmax2[at] + self.offset
        half = rows * columns // 2
        state = QuantState(
            absmax=absmax,
            shape=torch.Size((rows, columns)),
            dtype=torch.float32,
            blocksize=BLOCK,
            code=self.table,
            quant_type="nf4",
        )
        return dequantize_4bit(self.codes[expert * half : (expert + 1) * half].view(-1, 1), state)


class Mxfp4Stack(nn.Module):
    """The 4-bit floats that a checkpoint has (OCP Microscaling Formats 1.0): 4.25 bits a weight, and not rounded again.

    Buffers: codes uint8 (E, N, K / 32, 16), two weights a byte, the first in the low half; scales uint8 (E, N, K / 32),
    exponents of two plus 127.
    """

    GROUP = 32
    codes: Tensor
    scales: Tensor
    table: Tensor

    def __init__(self, codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        experts, rows, groups = scales.shape
        self.shape = (experts, rows, groups * self.GROUP)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        table = torch.tensor([*values, *(-v for v in values)], device=codes.device)
        self.register_buffer("table", table)

    def matrices(
        self, routing: Routing, dtype: torch.dtype, part: int = 0, parts: int = 1
    ) -> Tensor:
        """(E, N / parts, K): one of `parts` equal parts of each matrix, unpacked for experts that have rows."""
        out = empty_part(self.shape, parts, dtype, self.codes.device)
        if out.is_cuda:
            from qlora_space.experts import kernels

            kernels.dequantize_mxfp4(self, routing, part, out)
            return out
        for expert, count in enumerate(routing.counts):
            if count:
                out[expert] = self._matrix(expert).chunk(parts)[part]
        return out

    def _matrix(self, expert: int) -> Tensor:
        codes = self.codes[expert].int()
        pairs = torch.stack([self.table[codes & 15], self.table[codes >> 4]], -1)
        scale = torch.exp2(self.scales[expert].float() - 127)
        return (pairs.flatten(-2) * scale[..., None]).flatten(-2)


def empty_part(
    shape: Sequence[int], parts: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(E, N / parts, K) of unknown values."""
    experts, rows, columns = shape
    return torch.empty(experts, rows // parts, columns, dtype=dtype, device=device)


def nf4_table(device: torch.device) -> Tensor:
    """fp32 (16): what each code stands for."""
    return get_4bit_type("nf4", device=device).float()


def _quantized(weight: Tensor) -> dict[str, Tensor]:
    codes, state = quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
    )
    two: Any = state.state2
    offset: Any = state.offset
    return {
        "codes": codes.view(-1),
        "absmax": state.absmax,
        "absmax2": two.absmax.float(),
        "code2": two.code.float(),
        "offset": offset.float().reshape(()),
    }
