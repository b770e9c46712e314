"""A packed base as a folder: safetensors, and config.json with a quantization_config of its own kind.

Only load_lowbit reads it, not transformers' register_quantizer: that one loads through machinery whose interface
changes between releases (HqqConfig broke so), and the empty model that it would need is here anyway.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.experts.module import make_packable, packed_experts
from qlora_space.lowbit.architecture import (
    GENERATION_CONFIG,
    default_device,
    default_dtype,
    empty_model,
)
from qlora_space.lowbit.expert_grid import expect_packed, grids_of
from qlora_space.lowbit.grid import Grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards, load_blocks

METHOD = "qlora_space_lowbit"


def save_lowbit(model: PreTrainedModel, folder: Path | str) -> None:
    """Write weights, what is not packed in 16 bits, config.json and generation_config.json; no tokenizer.

    Raises ModelError if there is an adapter in the model.
    """
    folder = Path(folder)
    grids = {n: asdict(m.grid) for n, m in model.named_modules() if isinstance(m, LowBitLinear)}
    if any(name.endswith(".base_layer") for name in grids):
        raise ModelError(
            "The model has an adapter in it, but a packed base is stored without one.",
            "Save the base before add_repair, and the adapter with its own save_pretrained.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(stored_state(model), folder)
    config = json.loads(model.config.to_json_string())
    stated: dict[str, Any] = {"quant_method": METHOD, "version": 1, "layers": grids}
    if experts := {name: grids_of(module) for name, module in packed_experts(model)}:
        stated["experts"] = {
            name: {parameter: asdict(grid) for parameter, grid in own.items()}
            for name, own in experts.items()
        }
    config["quantization_config"] = stated
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    model.generation_config.to_json_file(folder / GENERATION_CONFIG)


def stored_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of it: fp32 ones in 16 bits, no head that is tied to the embeddings."""
    state = {k: _in_stored_dtype(v) for k, v in model.state_dict().items() if v.numel()}
    output: Any = model.get_output_embeddings()
    if output.weight is not model.get_input_embeddings().weight:
        return state
    head = next(name for name, module in model.named_modules() if module is output)
    return {k: v for k, v in state.items() if not k.startswith(f"{head}.")}


def _in_stored_dtype(value: torch.Tensor) -> torch.Tensor:
    """The 16-bit dtype that a tensor had before it was made fp32 to be computed with (shards.py)."""
    if value.dtype != torch.float32:
        return value
    narrow = value.to(torch.bfloat16)
    return narrow if torch.equal(narrow.float(), value) else value.to(torch.float16)


def load_lowbit(
    folder: Path | str, device: str | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """What save_lowbit wrote, frozen and in eval mode; peft loads adapters onto it.

    device: by default the GPU where there is one. dtype: of everything that is not packed, by default the fastest of
    the device. Raises ModelError.
    """
    folder, device = Path(folder), device or default_device()
    dtype = dtype or default_dtype(device)
    model = empty_model(folder)
    stored = _stored_grids(folder)
    make_packable(model)
    for name, experts in packed_experts(model):
        own = stored.get("experts", {}).get(name, {})
        expect_packed(experts, {parameter: Grid(**grid) for parameter, grid in own.items()})
    for name, grid in stored["layers"].items():
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
    for _ in load_blocks(model, Shards(folder, model), device, dtype):
        pass
    return model.eval()


def _stored_grids(folder: Path) -> dict[str, dict[str, Any]]:
    """ "layers": the grid of every packed linear by its name; "experts": of those by theirs. Raises ModelError."""
    file = folder / "config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    stated = config.get("quantization_config") or {}
    if stated.get("quant_method") != METHOD or stated.get("version") != 1:
        raise ModelError(
            f"{folder.name} is no low-bit base of this version.", "Quantize the base again."
        )
    return stated
