"""The same base twice: packed, and as transformers has it with the weights that the packed one stands for."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from qlora_space.experts import PackedExperts, packed_experts, packs_experts
from qlora_space.experts.routing import route
from qlora_space.model.base import forbid_repacking


def packed_base(folder: Path) -> PreTrainedModel:
    """In 4 bits, its experts too, computing in fp32."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with packs_experts():
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
    forbid_repacking(model)
    return model.requires_grad_(False)


def matrices(experts: PackedExperts, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The parameter that a packed one stands for, in transformers' layout."""
    stack: Any = experts.stack(name)
    index = torch.arange(experts.num_experts, device=stack.codes.device)[None]
    found = stack.matrices(route(index, experts.num_experts, dtype), dtype)
    return found.mT if experts.is_transposed else found


@torch.no_grad()
def plain_base(folder: Path, packed: PreTrainedModel) -> PreTrainedModel:
    """transformers' own modules, fp32, with the numbers of the packed base."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, module in packed.named_modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            dense = dequantize_4bit(weight.data, weight.quant_state)
            model.get_submodule(name).weight.copy_(dense)  # type: ignore[operator]
    for name, experts in packed_experts(packed):
        for parameter in experts.names:
            original: Any = getattr(model.get_submodule(name), parameter)
            original.copy_(matrices(experts, parameter))
    return model.requires_grad_(False)
