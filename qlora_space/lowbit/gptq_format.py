"""Checkpoints in GPTQ's format (GPTQModel, AutoRound, EfficientQAT) read and written without those packages.

A linear of n inputs and m outputs is stored as qweight (n * bits / 32, m) and qzeros (groups, m * bits / 32), both
int32, bits packed along the first and the last axis; scales (groups, m); g_idx (n), the group of every input. Version 1
stores zeros minus one. AutoRound's own format is version 2 without g_idx, or version 1 where it says auto_gptq.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.experts.module import packed_experts
from qlora_space.lowbit.architecture import (
    GENERATION_CONFIG,
    block_linears,
    block_names,
    empty_model,
)
from qlora_space.lowbit.checkpoint import stored_state
from qlora_space.lowbit.grid import Grid, unpacked, whole_grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.packing import pack
from qlora_space.lowbit.shards import Shards, load_outside_blocks

_WORD_BITS = 32


def load_gptq(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint of 2, 3, 4 or 8 bits, frozen; linears that are stored in 16 bits stay so. Raises ModelError."""
    stated = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    bits, is_v2 = int(stated["bits"]), _is_v2(stated)
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


def _is_v2(stated: dict[str, Any]) -> bool:
    is_auto_rounds = stated.get("packing_format") == "auto_round"
    return is_auto_rounds or stated.get("checkpoint_format") == "gptq_v2"


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


def save_gptq(model: PreTrainedModel, folder: Path) -> None:
    """A packed base in whole_grid as version 1 of the format, everything else in 16 bits; no tokenizer.
    Takes the place of model*.safetensors that are there.

    Raises ModelError where a linear of the blocks is not packed, or in another grid, or has m or n that 32 do not
    divide: the format has no place for these.
    """
    grid = _common_grid(model)
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, LowBitLinear):
            state |= {f"{name}.{part}": t for part, t in stored_tensors(module).items()}
    packed = {name.rpartition(".")[0] for name in state}
    for name, value in stored_state(model).items():
        if name.rpartition(".")[0] not in packed or name.endswith(".bias"):
            state[name] = value
    save_torch_state_dict(state, folder)
    config = json.loads(model.config.to_json_string())
    config["quantization_config"] = {
        "quant_method": "gptq", "checkpoint_format": "gptq", "bits": grid.bits, "group_size": grid.group_size,
        "sym": False, "desc_act": False, "true_sequential": False, "lm_head": False, "damp_percent": 0.01,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    model.generation_config.to_json_file(folder / GENERATION_CONFIG)


def _common_grid(model: PreTrainedModel) -> Grid:
    linears = {
        f"{block}.{name}": m
        for block in block_names(model)
        for name, m in model.get_submodule(block).named_modules()
        if isinstance(m, nn.Linear)
    }
    other = next((n for n, m in linears.items() if not isinstance(m, LowBitLinear)), None)
    if other or any(True for _ in packed_experts(model)):
        raise ModelError(
            f"{other or 'A layer of experts'} is not packed, and GPTQ's format packs all linears of a block.",
            "Choose another format.",
        )
    grids = {m.grid for m in linears.values() if isinstance(m, LowBitLinear)}
    grid = grids.pop()
    if grids or grid != whole_grid(grid.bits, grid.group_size):
        raise ModelError(
            "The base is not in GPTQ's grid, whose zeros are whole numbers.", "Quantize it again."
        )
    for name, m in linears.items():
        if m.in_features % _WORD_BITS or m.out_features % _WORD_BITS:
            raise ModelError(
                f"{name} is {m.out_features} x {m.in_features}, which {_WORD_BITS} does not divide.",
                "Choose another format.",
            )
    return grid


def stored_tensors(layer: LowBitLinear) -> dict[str, torch.Tensor]:
    """The tensors (above) of a linear in whole_grid, but for its bias."""
    n, grid = layer.in_features, layer.grid
    found = unpacked(grid, n, layer.codes, layer.scales, layer.zeros)
    return {
        "qweight": pack_words(found.codes, grid.bits).T.contiguous(),
        "qzeros": pack_words(found.zeros.T.contiguous(), grid.bits),
        "scales": found.scales.T.contiguous(),
        "g_idx": torch.arange(n, dtype=torch.int32) // grid.group_size,
    }


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of unpack_words: (m, k) uint8 to (m, k * bits / 32) int32."""
    places = torch.arange(_WORD_BITS, device=codes.device, dtype=torch.int32)
    stream = (codes[..., None] >> places[:bits].to(torch.uint8)) & 1
    words = stream.view(len(codes), -1, _WORD_BITS).int() << places
    return words.sum(-1, dtype=torch.int32)  # each bit once, so nothing is carried
