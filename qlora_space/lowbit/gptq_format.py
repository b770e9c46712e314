"""Checkpoints in GPTQ's format (GPTQModel, AutoRound's export, EfficientQAT) as LowBitLinears, without those packages.

A linear of n inputs and m outputs is stored as qweight (n * bits / 32, m), qzeros (groups, m * bits / 32), both int32,
a stream of bits along the first and the last axis; scales (groups, m) and g_idx (n), the group of every input.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.grid import Grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.packing import pack
from qlora_space.lowbit.shards import Shards, blocks_of, linears_of, skeleton
from qlora_space.lowbit.stream import fill_outside

_WORD_BITS = 32


def load_gptq(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Block by block; linears that were left in 16 bits stay so. Raises ModelError."""
    stated = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    bits, is_v2 = int(stated["bits"]), stated.get("checkpoint_format") == "gptq_v2"
    model, shards = skeleton(folder), Shards(folder)
    fill_outside(model, shards, device, dtype)
    blocks = blocks_of(model)
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    for i, block in enumerate(blocks):
        for inner in linears_of(block):
            name = f"{prefix}.{i}.{inner}"
            if shards.has(f"{name}.qweight"):
                parts = {
                    part: shards.read(f"{name}.{part}", device) for part in _parts(shards, name)
                }
                block.set_submodule(inner, linear_of(parts, bits, is_v2, dtype))
        shards.fill(model, f"{prefix}.{i}", device, dtype, unless=LowBitLinear)
    return model.eval()


def _parts(shards: Shards, name: str) -> list[str]:
    optional = [part for part in ("g_idx", "bias") if shards.has(f"{name}.{part}")]
    return ["qweight", "qzeros", "scales", *optional]


def linear_of(
    parts: dict[str, torch.Tensor], bits: int, is_v2: bool, dtype: torch.dtype
) -> LowBitLinear:
    """One linear. Version 1 stores zeros less one. Raises ModelError for groups of different sizes."""
    codes = unpacked_words(parts["qweight"].T.contiguous(), bits)
    scales = parts["scales"].T.contiguous()
    m, n = codes.shape
    groups = scales.shape[1]
    zeros = unpacked_words(parts["qzeros"], bits)[:, :m].T.contiguous()
    order = _order(parts.get("g_idx"), groups, n)
    grid = Grid(bits, n // groups, bits, 0.0 if is_v2 else 1.0, 1.0)
    layer = LowBitLinear(
        n,
        m,
        grid,
        bias="bias" in parts,
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
        layer.bias.data.copy_(parts["bias"])
    return layer


def unpacked_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, w) int32 to (m, w * 32 / bits) uint8; a 3-bit number may lie in two words."""
    places = torch.arange(_WORD_BITS, device=words.device, dtype=torch.int32)
    stream = ((words[..., None] >> places) & 1).to(torch.uint8).view(len(words), -1, bits)
    weights = (1 << torch.arange(bits, device=words.device)).to(torch.uint8)
    return (stream * weights).sum(-1, dtype=torch.uint8)


def _order(g_idx: torch.Tensor | None, groups: int, n: int) -> torch.Tensor | None:
    """Columns group by group, None where they are in place already (no desc_act)."""
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
