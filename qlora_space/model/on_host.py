"""A 4-bit base whose packed weights stay in host memory and visit the GPU layer by layer."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.fast import move_to_host, nf4_linear
from qlora_space.lowbit.architecture import block_linears, empty_model
from qlora_space.lowbit.shards import Shards, load_blocks
from qlora_space.model.base import compute_dtype, explains_out_of_memory


@torch.no_grad()
def load_on_host(folder: Path, device: str) -> PreTrainedModel:
    """The same numbers as load_base at 4 bits; embeddings, norms, head and scales are on the device.

    At most one layer is there in 16 bits while it loads. Raises ModelError, OutOfMemory.
    """
    dtype = compute_dtype(device)
    with explains_out_of_memory("Loading the base"):
        model = empty_model(folder)
        for layer in load_blocks(model, Shards(folder, model), device, dtype):
            _quantize(layer, dtype)
            move_to_host(layer)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks for
    return model.requires_grad_(False)


def _quantize(layer: nn.Module, dtype: torch.dtype) -> None:
    for name, linear in block_linears(layer).items():
        layer.set_submodule(name, nf4_linear(linear.weight, linear.bias, dtype))
