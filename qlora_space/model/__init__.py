"""A frozen quantized base with a LoRA adapter in it, and the way back to files."""

from qlora_space.model.adapter import (
    WEIGHTS_FILE,
    adapter_sha256,
    add_adapter,
    load_adapter,
    save_adapter,
)
from qlora_space.model.base import (
    compute_dtype,
    explains_out_of_memory,
    is_out_of_memory,
    load_base,
    max_rows,
)

__all__ = [
    "WEIGHTS_FILE",
    "adapter_sha256",
    "add_adapter",
    "compute_dtype",
    "explains_out_of_memory",
    "is_out_of_memory",
    "load_adapter",
    "load_base",
    "max_rows",
    "save_adapter",
]
