"""A packed base as a folder: safetensors, and config.json with a quantization_config of its own kind.

It is read by load_lowbit alone, not through transformers' register_quantizer: that one loads through machinery whose
interface moves between releases (HqqConfig broke so), and the loader here is the skeleton that quantizing needs anyway.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.grid import Grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import GENERATION_CONFIG, Shards, blocks_of, skeleton
from qlora_space.lowbit.stream import fill_outside

METHOD = "qlora_space_lowbit"


def save_lowbit(model: PreTrainedModel, folder: Path) -> None:
    """Weights, in 16 bits what is not packed, and config.json; the tokenizer's files are the caller's."""
    folder.mkdir(parents=True, exist_ok=True)
    grids = {n: asdict(m.grid) for n, m in model.named_modules() if isinstance(m, LowBitLinear)}
    state = {k: _as_it_was_stored(v) for k, v in model.state_dict().items() if v.numel()}
    output: Any = model.get_output_embeddings()
    if output.weight is model.get_input_embeddings().weight:
        state = {k: v for k, v in state.items() if not k.startswith("lm_head.")}
    save_torch_state_dict(state, folder)
    config = json.loads(model.config.to_json_string())
    config["quantization_config"] = {"quant_method": METHOD, "version": 1, "layers": grids}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    model.generation_config.to_json_file(folder / GENERATION_CONFIG)


def _as_it_was_stored(value: torch.Tensor) -> torch.Tensor:
    """As it is, or, where it was made fp32 to be computed with (shards.py), as it was."""
    if value.dtype != torch.float32:
        return value
    narrow = value.to(torch.bfloat16)
    return narrow if torch.equal(narrow.float(), value) else value.to(torch.float16)


def load_lowbit(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """What save_lowbit wrote. Raises ModelError."""
    stated = json.loads((folder / "config.json").read_bytes()).get("quantization_config") or {}
    if stated.get("quant_method") != METHOD or stated.get("version") != 1:
        raise ModelError(
            f"{folder.name} is no low-bit base of this version.", "Quantize the base again."
        )
    model, shards = skeleton(folder), Shards(folder)
    blocks = blocks_of(model)
    for name, grid in stated["layers"].items():
        linear = model.get_submodule(name)
        if not isinstance(linear, torch.nn.Linear):
            raise ModelError(f"{name} is not a linear layer.", "Quantize the base again.")
        layer = LowBitLinear(
            linear.in_features,
            linear.out_features,
            Grid(**grid),
            bias=linear.bias is not None,
            dtype=dtype,
            device="meta",
        )
        layer.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), False)
        model.set_submodule(name, layer)
    fill_outside(model, shards, device, dtype)
    prefix = next(n for n, m in model.named_modules() if m is blocks)
    for i in range(len(blocks)):
        shards.fill(model, f"{prefix}.{i}", device, dtype)
    return model.eval()
