"""Headers of safetensors files: names, types and shapes of tensors, without reading one of them."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_space.core.errors import ModelError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LAYER_NUMBER = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file. Offsets count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start_byte: int
    end_byte: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is the weight of a linear layer inside a numbered decoder layer."""
        in_layer = _LAYER_NUMBER.search(self.name) is not None
        is_weight = self.name.endswith(".weight") and len(self.shape) == 2
        return in_layer and is_weight and "embed" not in self.name and "lm_head" not in self.name


@dataclass(frozen=True)
class Header:
    tensors: tuple[Tensor, ...]
    num_bytes: int


def read_header(file: Path) -> Header:
    """Raises ModelError if the file is not safetensors."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 0 < size <= _MAX_HEADER_BYTES:
                raise ValueError("header size")
            entries = json.loads(stream.read(size))
        entries.pop("__metadata__", None)
        return Header(tuple(_tensor(name, entry) for name, entry in entries.items()), size + 8)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{file.name} is damaged: it does not begin with a safetensors header.",
            "Get the file again.",
        ) from None


def read_whole_header(file: Path) -> Header:
    """As read_header. Raises ModelError also if bytes of the tensors are missing."""
    header = read_header(file)
    ends = [header.num_bytes + tensor.end_byte for tensor in header.tensors]
    if file.stat().st_size < max(ends, default=0):
        raise ModelError(f"{file.name} is damaged: its end is missing.", "Get the file again.")
    return header


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(int(length) for length in entry["shape"])
    return Tensor(name, str(entry["dtype"]), shape, int(start), int(end))


@dataclass(frozen=True)
class WeightCount:
    """How many weights there are, and how many of them get quantized."""

    parameters: int
    linear_parameters: int
    has_head: bool


def count_weights(tensors: Iterable[Tensor], packed_bits: int = 0) -> WeightCount:
    """Sum over all files of a checkpoint; `packed_bits` as many bits a weight has inside the words of qweight."""
    counted = tuple(t for t in tensors if not t.name.endswith((".qzeros", ".scales", ".g_idx")))
    packed = sum(t.size for t in counted if t.name.endswith(".qweight"))
    inside = packed * 32 // packed_bits if packed_bits else 0
    return WeightCount(
        parameters=sum(t.size for t in counted) - packed + inside,
        linear_parameters=sum(t.size for t in counted if t.is_linear) + inside,
        has_head=any(t.name.endswith("lm_head.weight") for t in counted),
    )
