"""What a base became when it was loaded: which weights are packed, where LoRA sits, what is trained.

transformers, bitsandbytes and peft leave alone what they do not know, and say nothing: fused experts, a subclass of
nn.Linear. So it is counted, and compared with what the plan took from the files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.wording import count, counted
from qlora_space.lowbit.linear import LowBitLinear

_TOLERANCE = 0.01  # of all weights
_PROBE_TOKENS = 8
_LARGEST_LEAK = 0.02  # of the largest logit: rounding is less, and a document that is seen more


@dataclass(frozen=True)
class LoadedBase:
    """Numbers of weights. `adapted`: of the layers with LoRA; `adapters`: such layers; `trained`: of the adapter."""

    quantized: int
    in_16_bits: int
    adapted: int
    adapters: int
    trained: int

    @property
    def parameters(self) -> int:
        """Of the base."""
        return self.quantized + self.in_16_bits

    def in_words(self, bits: float) -> str:
        """One sentence for the log of a run."""
        quantized = f"{_share(self.quantized, self.parameters)} of them in {bits:g} bits"
        return (
            f"The base has {count(self.parameters)} weights, {quantized if bits < 16 else 'all in 16 bits'}; "
            f"adapters are on {counted(self.adapters, 'layer')} with {_share(self.adapted, self.parameters)} of the "
            f"weights, and {count(self.trained)} weights are trained."
        )


def loaded_base(model: PeftModel) -> LoadedBase:
    """Count what is there, each tensor once."""
    layers = (m.get_base_layer() for m in model.modules() if isinstance(m, LoraLayer))
    adapters = set(layers)  # experts have one for each of their matrices
    packed = dict(_packed(model))
    own = {id(p) for m in packed for p in m.parameters(recurse=False)}
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    adapter = {id(p) for n, p in model.named_parameters() if "lora_" in n}
    others = {
        id(p): p.numel() for p in model.parameters() if id(p) not in own | adapter | trained.keys()
    }
    return LoadedBase(
        quantized=sum(packed.values()),
        in_16_bits=sum(others.values()),
        adapted=sum(_adapted(m, packed) for m in adapters),
        adapters=len(adapters),
        trained=sum(trained.values()),
    )


def require_as_planned(loaded: LoadedBase, base: ModelFacts, bits: float) -> None:
    """Raises ModelError if fewer weights are packed than the plan counted on, or more are in 16 bits."""
    packed = base.linear_parameters if bits < 16 else 0
    rest = base.parameters - packed
    slack = _TOLERANCE * base.parameters
    if loaded.quantized >= packed - slack and loaded.in_16_bits <= rest + slack:
        return
    if bits < 16:
        figures = (
            f"{count(loaded.quantized)} of its {count(loaded.parameters)} weights are in {bits:g} bits, where the "
            f"plan counted {count(packed)} of {count(base.parameters)}"
        )
    else:
        figures = f"it has {count(loaded.parameters)} weights, where the plan counted {count(base.parameters)}"
    raise ModelError(
        f"{base.id} did not come out as planned: {figures}.",
        "Choose another base: this one has layers that are not quantized here (experts?).",
    )


@torch.no_grad()
def require_separate_documents(model: PeftModel, base: ModelFacts) -> None:
    """Raises ModelError if what a document predicts depends on the one before it in a packed row."""
    was_training, head = model.training, model.get_output_embeddings()
    device = head.weight.device  # type: ignore[union-attr]
    model.eval()
    second = torch.arange(_PROBE_TOKENS, 2 * _PROBE_TOKENS, device=device)
    positions = torch.arange(_PROBE_TOKENS, device=device).repeat(2)[None]
    firsts = (second - _PROBE_TOKENS, second.flip(0))
    rows = [torch.cat([first, second])[None] % base.vocab_size for first in firsts]
    one, other = (
        model(input_ids=row, position_ids=positions, use_cache=False)
        .logits[0, _PROBE_TOKENS:]
        .float()
        for row in rows
    )
    model.train(was_training)
    if (one - other).abs().max() > _LARGEST_LEAK * one.abs().max():
        raise ModelError(
            f"{base.id} lets a document see the one before it in a packed row.",
            "Start again without packing.",
        )


def _packed(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Modules that hold packed weights, and how many weights these stand for."""
    for module in model.modules():
        if weights := _packed_weights(module):
            yield module, weights


def _packed_weights(module: Any) -> int:
    """0 for a module that holds none. Modules of experts say it themselves."""
    if isinstance(module, LoraLayer):
        return 0  # it passes on the attributes of the layer inside, which is counted
    if own := getattr(module, "packed_parameters", 0):
        return int(own)
    if isinstance(module, LowBitLinear):
        return module.in_features * module.out_features
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return module.weight.numel() if isinstance(module, Linear8bitLt) else 0


def _adapted(base: nn.Module, packed: dict[nn.Module, int]) -> int:
    return packed.get(base) or sum(p.numel() for p in base.parameters(recurse=False))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} %"
