"""A base that is read block by block, because transformers cannot quantize it: its weights are stored packed, or
belong into host memory, from where they visit the GPU layer by layer."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Int8Params, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel

from qlora_space.experts.module import make_packable, packed_experts
from qlora_space.fast import move_to_host, nf4_linear
from qlora_space.lowbit.architecture import block_linears, empty_model
from qlora_space.lowbit.shards import Shards, load_blocks
from qlora_space.model.base import compute_dtype, explains_out_of_memory


def load_on_host(folder: Path, device: str) -> PreTrainedModel:
    """The same numbers as load_base at 4 bits; embeddings, norms, head and scales are on the device.

    Raises ModelError, OutOfMemory.
    """
    return load_by_blocks(folder, 4, device, on_host=True)


@torch.no_grad()
def load_by_blocks(
    folder: Path, bits: int, device: str, *, on_host: bool = False
) -> PreTrainedModel:
    """Frozen, like load_base's. At most one layer is there in 16 bits while it loads, but for 16 `bits`.

    Raises ModelError, OutOfMemory.
    """
    dtype = compute_dtype(device)
    with explains_out_of_memory("Loading the base"):
        model = empty_model(folder)
        for layer in load_blocks(model, Shards(folder, model), device, dtype):
            _quantize(layer, bits, dtype)
            if on_host:
                move_to_host(layer)
    if bits < 16:
        setattr(model, f"is_loaded_in_{bits}bit", True)  # what peft asks for
    return model.requires_grad_(False)


def _quantize(layer: nn.Module, bits: int, dtype: torch.dtype) -> None:
    if bits == 16:
        return
    for name, linear in block_linears(layer).items():
        packed = (
            nf4_linear(linear.weight, linear.bias, dtype) if bits == 4 else _int8_linear(linear)
        )
        layer.set_submodule(name, packed)
    if bits == 4:
        _pack_experts(layer)


def _pack_experts(layer: nn.Module) -> None:
    make_packable(layer)
    for _, experts in packed_experts(layer):
        for name in experts.names:
            experts.pack(name, getattr(experts, name))
        experts.show(None)


def _int8_linear(linear: nn.Linear) -> Linear8bitLt:
    device = linear.weight.device
    packed = Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False,
        threshold=6.0, device="meta",
    )  # fmt: skip
    make: Any = Int8Params
    weight = make(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    packed.weight = weight.to(device)  # quantized on the way
    packed.bias = linear.bias
    return packed
