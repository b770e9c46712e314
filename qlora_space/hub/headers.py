"""Names, types and shapes of the tensors in safetensors files, without reading one of them.

Local headers are read by safetensors, which refuses what is damaged, larger than 100 MB, or does not fit the size of
the file; those on the Hub by huggingface_hub, which reads 25 MB at most. Ours is only what the tensors of a checkpoint
mean: which are the weights of linear layers, and how many weights a packed one holds.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qlora_space.core.errors import ModelError

_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `dtype` as safetensors names it, for example 'BF16'."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer inside a numbered decoder layer."""
        in_layer = _LAYER_NUMBER.search(self.name) is not None
        is_weight = self.name.endswith(".weight") and len(self.shape) == 2
        return in_layer and is_weight and "embed" not in self.name and "lm_head" not in self.name


def read_tensors(file: Path) -> tuple[Tensor, ...]:
    """The tensors in the order of their bytes, which fill the file to its end without a gap.

    Raises ModelError if the file is not safetensors, or not whole.
    """
    try:
        with safe_open(file, framework="np") as opened:
            slices = ((name, opened.get_slice(name)) for name in opened.offset_keys())
            return tuple(Tensor(n, s.get_dtype(), tuple(s.get_shape())) for n, s in slices)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file.name} is damaged: {error}.", "Get the file again.") from None


@dataclass(frozen=True)
class WeightCount:
    """How many weights there are, and how many of them are quantized in training."""

    parameters: int
    linear_parameters: int
    has_head: bool


def count_weights(tensors: Iterable[Tensor], packed_bits: int = 0) -> WeightCount:
    """Sums over all files of a checkpoint. `packed_bits`: bits per weight in GPTQ's 32-bit words, 0 without."""
    counted = tuple(t for t in tensors if not t.name.endswith((".qzeros", ".scales", ".g_idx")))
    packed = sum(t.size for t in counted if t.name.endswith(".qweight"))
    unpacked = packed * 32 // packed_bits if packed_bits else 0
    return WeightCount(
        parameters=sum(t.size for t in counted) - packed + unpacked,
        linear_parameters=sum(t.size for t in counted if t.is_linear) + unpacked,
        has_head=any(t.name.endswith("lm_head.weight") for t in counted),
    )
