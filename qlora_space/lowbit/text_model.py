"""The class that a checkpoint declares, made into what text needs of it, before its weights are read.

Towers for images and sound stay out; what transformers or peft cannot quantize or adapt is known by structure.
"""

from collections.abc import Callable
from typing import Any

import transformers
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_space.core.errors import ModelError

WhenEmpty = Callable[[PreTrainedModel], object]
_PLAIN_LINEARS = {"FalconLinear"}  # subclasses that multiply as nn.Linear does


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether the text model is inside of another one."""
    return config.get_text_config(decoder=True) is not config


def text_class(
    config: PreTrainedConfig, when_empty: WhenEmpty = lambda model: None
) -> type[PreTrainedModel]:
    """The declared class of a wrapper, else the causal one of the type; without what text does not need.

    when_empty: gets every model of it before transformers replaces linears and reads weights. Raises ModelError for a
    type that transformers has no such class for.
    """
    declared = (getattr(config, "architectures", None) or [""])[0]
    found: Any = getattr(transformers, declared, None) if is_wrapper(config) else None
    if found is None:
        found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ModelError(
            f"This version of transformers has no text model of the type {config.model_type}.",
            "Choose another base.",
        )
    return _for_text(found, when_empty)


def _for_text(declared: type[PreTrainedModel], when_empty: WhenEmpty) -> Any:
    """Under the same name in the same module: transformers finds its renaming of weights by them."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        declared.__init__(self, *args, **kwargs)
        if is_wrapper(self.config):
            _leave_out_towers(self)
        for module in self.modules():
            if type(module).__name__ in _PLAIN_LINEARS:
                module.__class__ = nn.Linear
        when_empty(self)

    body = {"__init__": __init__, "__module__": declared.__module__}
    return type(declared.__name__, (declared,), body)


def without_router_loss(config: PreTrainedConfig) -> None:
    """A frozen router has no load to balance, and its logits are not there where a cache is used."""
    for one in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        for name, value in (("output_router_logits", False), ("router_aux_loss_coef", 0.0)):
            if hasattr(one, name):
                setattr(one, name, value)


def _leave_out_towers(model: PreTrainedModel) -> None:
    names = []
    for prefix, owner, kept in _path_to_decoder(model):
        for name, child in list(owner.named_children()):
            is_head = child is model.get_output_embeddings()
            if name != kept and not is_head and any(True for _ in child.parameters()):
                setattr(owner, name, None)
                names.append(rf"^{prefix}{name}\.")
    ignored = set(model._keys_to_ignore_on_load_unexpected or ())
    model._keys_to_ignore_on_load_unexpected = ignored | set(names)


def left_out(model: PreTrainedModel) -> list[str]:
    """Names of the modules that stayed out, in their owners: "vision_tower", ..."""
    if not is_wrapper(model.config):
        return []
    owners = _path_to_decoder(model)
    return [n for _, owner, _ in owners for n, child in owner._modules.items() if child is None]


def _path_to_decoder(model: PreTrainedModel) -> list[tuple[str, nn.Module, str]]:
    """Prefix of its children's names, module, and name of the child that leads on, from the root to the decoder."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    found, owner, prefix = [], model, ""
    for part in path.split("."):
        found.append((prefix, owner, part))
        owner, prefix = getattr(owner, part), f"{prefix}{part}."
    return found


def not_quantized(model: PreTrainedModel) -> list[str]:
    """Names of modules that stay in 16 bits: head, tied weights, and `raw_linears`."""
    return [*get_keys_to_not_convert(model), *raw_linears(model)]


def raw_linears(model: nn.Module) -> list[str]:
    """Linears whose weight is read without calling them: they can be neither packed nor adapted.

    Mamba's kernels take that of `out_proj` (its blocks have A_log and D); Gemma 3n clamps those of its AltUp.
    """
    found = []
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ("A_log", "D", "out_proj")):
            found.append(f"{name}.out_proj")
        if hasattr(module, "prediction_coefs"):
            inner = (n for n, m in module.named_modules() if isinstance(m, nn.Linear))
            found += [f"{name}.{n}" for n in inner]
    return found


def adapted_linears(model: PreTrainedModel) -> str | list[str]:
    """What LoRA is put on: every linear but the head and `raw_linears`, as peft takes it."""
    raw = set(raw_linears(model))
    if not raw:
        return "all-linear"
    kept = adaptable_linears(model)
    # peft would take a number for that of a layer.
    return sorted(n for n in {_last(n) for n in kept} - {_last(n) for n in raw} if not n.isdigit())


def adaptable_linears(model: PreTrainedModel) -> set[str]:
    """Names of all linears but the head and `raw_linears`."""
    head = model.get_output_embeddings()
    linears = (
        n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head
    )
    return set(linears) - set(raw_linears(model))


def towers_pattern(model: PreTrainedModel) -> str | None:
    """What peft must leave alone where somebody loads the adapter onto the whole class; None where nothing is."""
    names = left_out(model)
    return rf"(.*\.)?({'|'.join(names)})(\..*)?" if names else None


def _last(name: str) -> str:
    return name.rpartition(".")[2]
