"""LoRA on packed experts by peft: `target_parameters`, with peft's weights, names and files.

peft wraps the module that holds a 3-D parameter, once for each parameter, and adds B A to the whole parameter in every
forward pass. Over packed experts there is nothing to add to: the wrappers here are peft's, with the same weights, but
hand A and B to the products. What peft writes loads on the 16-bit base by peft alone, and vLLM knows the names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from qlora_space.experts.module import (
    PackedExperts,
    is_fused,
    packed_experts,
    parameters,
    routers,
)
from qlora_space.experts.products import Adapter, Adapters

Tensor = torch.Tensor


class ExpertsAdapter(ParamWrapper):
    """peft's wrapper of one parameter of PackedExperts, whose forward does not build the parameter."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PackedExperts. Raises ValueError for batches of mixed adapters: rows are tokens here, not prompts."""
        self._check_forward_args(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        return base(x, *args, adapters=self.adapters_of_products(), **kwargs)

    def adapters_of_products(self) -> Adapters:
        """Of the first product and of `down`: this wrapper's and those inside it, None where none is on."""
        wrappers, layer = [], self
        while isinstance(layer, ParamWrapper):
            wrappers.append(layer)
            layer = layer.base_layer
        base: Any = layer
        found = {} if self.disable_adapters else dict(_adapters(wrappers))
        first, down = base.names
        return found.get(first), found.get(down)


def _adapters(wrappers: list[Any]) -> Iterator[tuple[str, Adapter]]:
    for wrapper in wrappers:
        for name in wrapper.active_adapters:
            if name in wrapper.lora_A:
                a, b = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
                yield (
                    wrapper.parameter_name,
                    Adapter(a, b, float(wrapper.scaling[name]), wrapper.num_experts),
                )


def expert_targets(model: nn.Module) -> list[str]:
    """The `target_parameters` that adapt all experts, packed or not, by what follows the layer's number."""
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, PackedExperts) or is_fused(module):
            parts = name.split(".")
            last = max(i for i, part in enumerate(parts) if part.isdigit())
            names |= {".".join([*parts[last + 1 :], parameter]) for parameter in parameters(module)}
    return sorted(names)


def linear_targets(model: PreTrainedModel) -> list[str]:
    """The `target_modules` of a model with packed experts: its linears by their last names, but the head and routers.

    peft 0.21 takes names of projections that once were in experts too (gate_proj of a shared one, `gate`) for fused
    experts and routers, whenever it reads a config: what it would take so has no place in one.
    """
    head, kept = model.get_output_embeddings(), set(routers(model))
    linears = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name not in kept
    }
    probe = LoraConfig(target_modules=sorted(linears))
    convert_peft_config_for_transformers(probe, model, None)
    return sorted(linears & set(probe.target_modules or ()))


@contextmanager
def visible_experts(model: nn.Module) -> Iterator[None]:
    """Inside, peft finds the parameters of packed experts, with their shapes; behind it, what it made of them works."""
    for _, experts in packed_experts(model):
        experts.show(next(experts.stacks.buffers()).device)
    try:
        yield
    finally:
        for _, experts in packed_experts(model):
            experts.show(None)
        adapted_in_place(model)


def adapted_in_place(model: nn.Module) -> None:
    """Let peft's wrappers of packed experts hand their weights to the products."""
    for module in model.modules():
        if type(module) is ParamWrapper and hasattr(module.get_base_layer(), "packed_parameters"):
            module.__class__ = ExpertsAdapter
