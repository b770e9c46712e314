"""Bases for training, comparing, and for those who load what was published."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_space.core.facts import ModelFacts
from qlora_space.hub import fetch_base, fetch_packed_base, model_facts
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.lowbit.gptq_format import load_gptq
from qlora_space.model import compute_dtype, explains_out_of_memory, load_base
from qlora_space.model.on_host import load_on_host


def load_any(
    facts: ModelFacts, folder: Path, bits: int, device: str, *, on_host: bool = False
) -> PreTrainedModel:
    """By bitsandbytes or in 16 bits; packed already, where the checkpoint is; 4 bits may stay in host memory.

    Raises ModelError, OutOfMemory.
    """
    if on_host:
        return load_on_host(folder, device)
    if facts.quantization:
        with explains_out_of_memory("Loading the base"):
            return load_gptq(folder, device, compute_dtype(device))
    return load_base(folder, bits, device)


def load_quantized(
    base: str,
    *,
    bits: int,
    group_size: int = 64,
    revision: str | None = None,
    device: str | None = None,
    token: str | None = None,
) -> PreTrainedModel:
    """A base from the Hub or a folder, packed to `bits` as it was in training; peft loads adapters onto it.

    Raises ModelError, HubError.
    """
    device = device or _best_device()
    folder = fetch_base(model_facts(base, revision, token), token)
    return pack_base(folder, bits, group_size, device, compute_dtype(device))


def load_packed(
    adapter: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    token: str | None = None,
) -> PreTrainedModel:
    """The packed base that was published with an adapter, by the adapter's Hub id or folder.

    Raises ModelError, HubError.
    """
    device = device or _best_device()
    folder = fetch_packed_base(adapter, revision, token)
    return load_lowbit(folder, device, compute_dtype(device))


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
