"""Checkpoints in GPTQ's format (GPTQModel, AutoRound's export, EfficientQAT) as LowBitLinears, without those packages.

A linear of n inputs and m outputs is stored as qweight (n * bits / 32, m) and qzeros (groups, m * bits / 32), both
int32, bits packed along the first and the last axis; scales (groups, m); g_idx (n), the group of every input.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.architecture import block_linears, block_names, empty_model
from qlora_space.lowbit.grid import Grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.packing import pack
from qlora_space.lowbit.shards import Shards, load_outside_blocks

_WORD_BITS = 32


def load_gptq(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint of 2, 3, 4 or 8 bits, frozen; linears that are stored in 16 bits stay so. Raises ModelError."""
    stated = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    bits, is_v2 = int(stated["bits"]), stated.get("checkpoint_format") == "gptq_v2"
    model = empty_model(folder)
    shards = Shards(folder, model)
    load_outside_blocks(model, shards, device, dtype)
    for block_name in block_names(model):
        for inner in block_linears(model.get_submodule(block_name)):
            name = f"{block_name}.{inner}"
            if shards.has(f"{name}.qweight"):
                tensors = _read_linear(shards, name, device)
                model.set_submodule(name, gptq_linear(tensors, bits, is_v2, dtype))
        shards.load_into(model, block_name, device, dtype, skip=LowBitLinear)
    return model.eval()


def _read_linear(shards: Shards, name: str, device: str) -> dict[str, torch.Tensor]:
    optional = [part for part in ("g_idx", "bias") if shards.has(f"{name}.{part}")]
    parts = ["qweight", "qzeros", "scales", *optional]
    return {part: shards.read(f"{name}.{part}", device) for part in parts}


def gptq_linear(
    tensors: dict[str, torch.Tensor], bits: int, is_v2: bool, dtype: torch.dtype
) -> LowBitLinear:
    """One linear from its stored tensors (above). Version 1 of the format stores zeros minus one.

    Raises ModelError for groups of different sizes.
    """
    codes = unpack_words(tensors["qweight"].T.contiguous(), bits)
    scales = tensors["scales"].T.contiguous()
    m, n = codes.shape
    groups = scales.shape[1]
    zeros = unpack_words(tensors["qzeros"], bits)[:, :m].T.contiguous()
    order = _order(tensors.get("g_idx"), groups, n)
    grid = Grid(bits, n // groups, bits, 0.0 if is_v2 else 1.0, 1.0)
    layer = LowBitLinear(
        n,
        m,
        grid,
        bias="bias" in tensors,
        has_order=order is not None,
        dtype=dtype,
        device=codes.device,
    )
    if order is not None:
        codes = codes[:, order]
        layer.order = torch.empty_like(order, dtype=torch.int32)
        layer.order[order] = torch.arange(n, dtype=torch.int32, device=codes.device)
    layer.codes.copy_(pack(codes, bits))
    layer.scales.copy_(scales)
    layer.zeros.copy_(pack(zeros, bits))
    if layer.bias is not None:
        layer.bias.data.copy_(tensors["bias"])
    return layer


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, w) int32 to (m, w * 32 / bits) uint8; a 3-bit code may lie in two words."""
    shifts = torch.arange(_WORD_BITS, device=words.device, dtype=torch.int32)
    stream = ((words[..., None] >> shifts) & 1).to(torch.uint8).view(len(words), -1, bits)
    weights = (1 << torch.arange(bits, device=words.device)).to(torch.uint8)
    return (stream * weights).sum(-1, dtype=torch.uint8)


def _order(g_idx: torch.Tensor | None, groups: int, n: int) -> torch.Tensor | None:
    """The columns sorted by group (n), None where they already are (no desc_act)."""
    if g_idx is None:
        return None
    in_place = torch.arange(n, device=g_idx.device) // (n // groups)
    if torch.equal(g_idx.long(), in_place):
        return None
    if (g_idx.long().bincount(minlength=groups) != n // groups).any():
        raise ModelError(
            "This checkpoint has groups of different sizes, which are not read.",
            "Choose the original 16-bit model.",
        )
    return g_idx.long().argsort(stable=True)
