"""Mixtures of experts whose frozen experts are packed; knows nothing of the rest of this package.

transformers holds the experts of a layer as two 3-D parameters, which bitsandbytes' linears never see. Here they are
packed while they are loaded (loading.py), kept in stacks (stacks.py), and multiplied group by group (products.py) by a
module that takes the place of transformers' (module.py). Adapters on them are peft's `target_parameters`, with peft's
weights, names and files (adapter.py).

Names are imported when they are first used, so importing the package is cheap and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_space.experts.adapter import (
        adapted_in_place,
        expert_targets,
        linear_targets,
        visible_experts,
    )
    from qlora_space.experts.loading import packs_experts, without_mxfp4
    from qlora_space.experts.module import PackedExperts, packed_experts

_MODULE_OF = {
    "PackedExperts": "module",
    "adapted_in_place": "adapter",
    "expert_targets": "adapter",
    "linear_targets": "adapter",
    "packed_experts": "module",
    "packs_experts": "loading",
    "visible_experts": "adapter",
    "without_mxfp4": "loading",
}
__all__ = [
    "PackedExperts",
    "adapted_in_place",
    "expert_targets",
    "linear_targets",
    "packed_experts",
    "packs_experts",
    "visible_experts",
    "without_mxfp4",
]


def __getattr__(name: str) -> Any:
    """PEP 562. No module here has one of these names, or it would hide the name once it is imported."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
