"""While a base is being read, one random layer of its shape goes through both steps, in a thread.

That compiles the kernels and loads the GPU's libraries, which takes as long as reading the base. Bases of random
weights, made layer by layer in 4 bits, serve measurements too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, cast

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from qlora_space.fast.host_memory import move_to_host
from qlora_space.fast.limits import Unsupported
from qlora_space.fast.model import build_checked
from qlora_space.fast.policies import ActivationPolicy

_VOCABULARY = 1024


def warm_up(folder: Path, r: int, device: str = "cuda") -> Thread | None:
    """Start compiling what a model of the config in `folder` with adapters of rank `r` will need.

    Join the thread before the real model is attached. None where such a layer cannot be made, which only costs time.
    """
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = whole.get_text_config(decoder=True)
        config.vocab_size, config.pad_token_id, config.quantization_config = _VOCABULARY, None, None
        config.num_hidden_layers = 1
        base = random_base(config, device)
        lora = LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
    except Exception:  # `attach` says why when it gets the real model
        return None
    thread = Thread(target=_run_both_steps, args=(model,), daemon=True)
    thread.start()
    return thread


def _run_both_steps(model: Any) -> None:
    try:
        build_checked(model, ActivationPolicy.LAYER, on_cpu=True)
    except (Unsupported, torch.OutOfMemoryError):
        return


def random_base(config: Any, device: str, *, on_host: bool = False) -> PreTrainedModel:
    """A causal LM of the config's shape: linears in NF4 with double quantization, the rest in bf16.

    Weights are normal with the spread of torch's own linears, 1 / sqrt(3 K), with which many layers neither explode nor
    vanish; norms are 1. Never more than one matrix of its layers is there unquantized.
    on_host: packed weights in host memory (host_memory.py).
    """
    num_layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device(device):
        # Every architecture has it, and only two short documents ever go through the plain way.
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
    layers, kind = model.model.layers, type(model.model.layers[0])
    del layers[0]
    config.num_hidden_layers = num_layers
    for index in range(num_layers):
        with _default_dtype(torch.bfloat16), torch.device("meta"):
            layer = kind(config, index)
        _fill(layer, device)
        if on_host:
            move_to_host(layer)
        layers.append(layer)
    model.is_loaded_in_4bit = True  # what peft asks for
    return model.requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fill(layer: nn.Module, device: str) -> None:
    """From the meta device to a real one."""
    for owner in list(layer.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                setattr(owner, name, _random_linear(child, device))
    for owner in layer.modules():
        for name, weight in list(owner.named_parameters(recurse=False)):
            if weight.is_meta:
                ones = torch.ones(weight.shape, dtype=torch.bfloat16, device=device)
                setattr(owner, name, nn.Parameter(ones, requires_grad=False))


def _random_linear(like: nn.Linear, device: str) -> Linear4bit:
    weight = torch.randn(like.weight.shape, dtype=torch.bfloat16, device=device)
    weight *= (3 * like.in_features) ** -0.5
    return nf4_linear(weight, None, torch.bfloat16)


def nf4_linear(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear4bit:
    """A linear in NF4 with double quantization (QLoRA, arXiv 2305.14314, sec. 3), the same bits as transformers loads.

    weight: (N, K) on the device where it is to be; bias: (N,); dtype: in which it is multiplied.
    """
    (outputs, inputs), packed = weight.shape, cast(Any, Params4bit)
    linear = Linear4bit(
        inputs, outputs, bias=bias is not None, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    linear.weight = packed(weight.data, requires_grad=False, quant_type="nf4", module=linear).to(
        weight.device
    )
    if bias is not None:
        linear.bias = nn.Parameter(bias.data, requires_grad=False)
    linear.support_avx512bf16_for_cpu = False  # see model/base.py
    return linear
