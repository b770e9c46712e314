"""load_quantized(): what a published adapter's card tells to call."""

import torch
from transformers import PreTrainedModel

from qlora_space.hub import fetch_base, model_facts
from qlora_space.lowbit.build import pack_base
from qlora_space.model import compute_dtype


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
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = fetch_base(model_facts(base, revision, token), token)
    return pack_base(folder, bits, group_size, device, compute_dtype(device))
