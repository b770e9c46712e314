"""The repair as a LoRA adapter: peft's own modules over a packed base, their weights the adapter inits."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.adapter_init import AdapterInits
from qlora_space.lowbit.build import LowBitBase
from qlora_space.lowbit.text_model import adapted_linears, towers_pattern


def add_lora(  # noqa: PLR0913 - peft has more
    model: PreTrainedModel,
    *,
    r: int,
    lora_alpha: int,
    lora_dropout: float = 0.0,
    target_modules: str | list[str] | None = None,
    expert_targets: Sequence[str] = (),
    expert_r: int = 0,
    use_rslora: bool = False,
    use_dora: bool = False,
    seed: int = 0,
    revision: str | None = None,
) -> PeftModel:
    """A trainable adapter in fp32 over any frozen base, as peft initializes it: A random by the seed, B zero.

    lora_alpha / r scales B A, lora_alpha / sqrt(r) with use_rslora. target_modules: by default every linear of the
    text model but the head, and but Mamba's out_proj, which its kernels read past an adapter. expert_targets: names of
    parameters that hold experts, which get adapters of rank expert_r. revision: the base's commit on the Hub, written
    into adapter_config.json. The base's modules are replaced in place.
    """
    share = expert_r / r
    ranks = dict.fromkeys(expert_targets, expert_r)
    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=adapted_linears(model) if target_modules is None else target_modules,
        exclude_modules=towers_pattern(model),
        target_parameters=list(expert_targets) or None,
        rank_pattern=ranks,
        # The same scale everywhere: vLLM reads no patterns.
        alpha_pattern=dict.fromkeys(
            ranks, lora_alpha * share**0.5 if use_rslora else lora_alpha * share
        ),
        use_rslora=use_rslora,
        use_dora=use_dora,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # There are no towers here that could be excluded, and patterns of parameters are looked for among modules.
        warnings.filterwarnings("ignore", "You have passed exclude_modules")
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        return get_peft_model(model, config)


def add_repair(
    base: LowBitBase, *, lora_alpha: int | None = None, lora_dropout: float = 0.0
) -> PeftModel:
    """The packed base with the adapter that repairs it, in eval mode, to be trained like any model of peft.

    Its rank is the recipe's. lora_alpha: by default the rank; another value changes how fast the adapter learns, not
    its first outputs. Save the base before: save_lowbit takes it without an adapter.
    """
    r = len(next(iter(base.adapter_inits.values()))[0])
    alpha = r if lora_alpha is None else lora_alpha
    model = add_lora(base.model, r=r, lora_alpha=alpha, lora_dropout=lora_dropout)
    apply_adapter_inits(model, base.adapter_inits)
    return model.eval()


@torch.no_grad()
def apply_adapter_inits(model: PeftModel, inits: AdapterInits) -> None:
    """Write the inits into the adapter "default", its scale divided out of B.

    Raises ModelError if one of the linears has no adapter.
    """
    base: nn.Module = model.get_base_model()
    for name, (a, b) in inits.items():
        layer: Any = base.get_submodule(name)
        if not hasattr(layer, "lora_A"):
            raise ModelError(f"The adapter has no place at {name}.", "Train all linear layers.")
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b / layer.scaling["default"])
