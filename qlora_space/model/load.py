"""The frozen base of a plan: quantized here, packed already, or in host memory."""

from pathlib import Path

from transformers import PreTrainedModel

from qlora_space.core.facts import ModelFacts
from qlora_space.lowbit.gptq_format import load_gptq
from qlora_space.model.base import compute_dtype, explains_out_of_memory, load_base
from qlora_space.model.by_blocks import load_by_blocks, load_on_host


def load_frozen_base(
    facts: ModelFacts, folder: Path, bits: int, device: str, *, on_host: bool = False
) -> PreTrainedModel:
    """By bitsandbytes or in 16 bits; a GPTQ checkpoint with its own bits, other packed ones by way of 16; 4 bits may
    stay in host memory.

    Raises ModelError, OutOfMemory.
    """
    if on_host:
        return load_on_host(folder, device)
    if facts.read_as:
        return load_by_blocks(folder, bits, device)
    if facts.quantization == "gptq":
        with explains_out_of_memory("Loading the base"):
            return load_gptq(folder, device, compute_dtype(device))
    return load_base(folder, bits, device)
