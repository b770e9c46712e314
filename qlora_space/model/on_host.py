"""A base at 4 bits whose packed weights never lie on the GPU as a whole."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_space.fast import move_to_host, nf4_linear
from qlora_space.lowbit.shards import Shards, linears_of, skeleton
from qlora_space.lowbit.stream import filled_blocks
from qlora_space.model import compute_dtype, explains_out_of_memory


@torch.no_grad()
def load_on_host(folder: Path, device: str) -> PreTrainedModel:
    """The same numbers as model.load_base at 4 bits; on the GPU are embeddings, norms, head and the scales.

    Layer by layer: no more than one is there in 16 bits. Raises ModelError, OutOfMemory.
    """
    dtype = compute_dtype(device)
    with explains_out_of_memory("Loading the base"):
        model = skeleton(folder)
        for layer in filled_blocks(model, Shards(folder), device, dtype):
            _quantize(layer, dtype)
            move_to_host(layer)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks for
    return model.requires_grad_(False)


def _quantize(layer: nn.Module, dtype: torch.dtype) -> None:
    for name, linear in linears_of(layer).items():
        layer.set_submodule(name, nf4_linear(linear.weight, linear.bias, dtype))
