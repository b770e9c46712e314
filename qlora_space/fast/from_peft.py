# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""From transformers' and peft's modules to layers of the fast path. What is not known is Unsupported, never guessed.

Architectures are recognized by their modules, not by their names: norms and activations are probed with numbers,
linears that share an input become one, and what the probes cannot see is found by comparing gradients (model.py).
"""

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from qlora_space.fast.attention import Attention
from qlora_space.fast.head import Head
from qlora_space.fast.layer import Layer, Norms
from qlora_space.fast.limits import LARGEST_RANK, Unsupported
from qlora_space.fast.linear import FusedLinear
from qlora_space.fast.mixture import MixtureLayer, mixture_of

Tensor = torch.Tensor
_NORMS = {"input_layernorm", "post_attention_layernorm"}
_LARGEST_CAP, _CAPPED_DIMS = 60.0, (16, 32, 64, 128, 256)  # see attention_kernels.py
_ADAPTER_DTYPES = (torch.float32, torch.float64)  # fp64 for tests
_SANDWICH = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}


def layers_of(decoder: nn.Module, dtype: torch.dtype) -> list[Layer]:
    """All decoder layers, which compute in `dtype`. Raises Unsupported."""
    return [_layer(i, m, dtype) for i, m in enumerate(decoder.layers)]  # type: ignore


def head_of(base: nn.Module, decoder: nn.Module) -> Head:
    """Final norm and head. Raises Unsupported."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or head.bias is not None:
        raise Unsupported("the head is not a plain matrix")
    config = base.config.get_text_config()  # type: ignore[union-attr]
    cap = getattr(config, "final_logit_softcapping", None) or 0.0
    norm = decoder.norm
    return Head(head.weight, _norm_weight(norm), _eps(norm), float(cap))  # type: ignore


def _layer(index: int, module: nn.Module, dtype: torch.dtype) -> Layer:
    names = {n for n, m in module.named_children() if not isinstance(m, nn.Dropout)}
    is_sandwich = names >= _SANDWICH
    if names != {"self_attn", "mlp"} | _NORMS | (_SANDWICH if is_sandwich else set()):
        raise Unsupported(f"layers of {', '.join(sorted(names))} are not known")
    if any(m.p for m in module.children() if isinstance(m, nn.Dropout)):
        raise Unsupported("the layers have dropout")
    attn, mlp = module.self_attn, module.mlp
    d = int(attn.head_dim)  # type: ignore
    o = _linear(attn, ("o_proj",), dtype)
    qkv = _linear(attn, ("q_proj", "k_proj", "v_proj"), dtype, "qkv_proj")
    queries = o.inputs // d
    shared = {
        "index": index,
        "qkv": qkv,
        "o": o,
        "norms": _norms(module, is_sandwich=is_sandwich),
        "attention": _attention(attn),
        "heads": (queries, (sum(qkv.rows) // d - queries) // 2),
        "rotary": getattr(attn, "layer_type", None),
        "host_block": getattr(module, "host_block", None),
    }
    if mixture := mixture_of(mlp):  # type: ignore[arg-type]
        if is_sandwich:
            raise Unsupported("what its experts give is normed")
        return MixtureLayer(gate_up=None, down=None, is_gelu=False, mixture=mixture, **shared)
    return Layer(
        gate_up=_linear(mlp, ("gate_proj", "up_proj"), dtype, "gate_up_proj"),
        down=_linear(mlp, ("down_proj",), dtype),
        is_gelu=_is_gelu(mlp),
        **shared,
    )


def _linear(owner, names: tuple[str, ...], dtype: torch.dtype, fused: str = "") -> FusedLinear:
    parts = [getattr(owner, n, None) for n in ((fused,) if hasattr(owner, fused) else names)]
    for name, part in zip(names, parts, strict=False):
        _check_adapter(name, part)
    return FusedLinear(parts, dtype)  # type: ignore[arg-type]


def _check_adapter(name: str, part: nn.Module | None) -> None:
    if not isinstance(part, LoraLayer):
        raise Unsupported(f"{name} has no adapter")
    if list(part.lora_A) != ["default"] or part.lora_variant or part.merged:
        raise Unsupported(f"{name} has not one plain LoRA adapter")
    if any(isinstance(d, nn.Dropout) and d.p > 0 for d in part.lora_dropout.values()):
        raise Unsupported("lora_dropout is not 0")
    if any(m.bias is not None for m in part.lora_B.values()):
        raise Unsupported(f"the adapter of {name} has a bias")
    if part.lora_A["default"].weight.dtype not in _ADAPTER_DTYPES:
        raise Unsupported(f"the adapter of {name} is not in fp32")
    if part.r["default"] > LARGEST_RANK:
        raise Unsupported(f"r is above {LARGEST_RANK}")
    _check_base(name, part.base_layer)


def _check_base(name: str, base: nn.Module) -> None:
    weight = base.weight  # type: ignore[union-attr]
    state = getattr(weight, "quant_state", None)
    if weight.is_cuda and state is None and not hasattr(base, "dequantize_into"):
        raise Unsupported("only bases of 4 bits and fewer are on it")
    if state is not None and state.shape[1] % state.blocksize:
        raise Unsupported(f"the rows of {name} do not divide into blocks of {state.blocksize}")


def _norms(module: nn.Module, *, is_sandwich: bool) -> Norms:
    attn = module.self_attn
    mlp = module.pre_feedforward_layernorm if is_sandwich else module.post_attention_layernorm
    query_key = None
    if hasattr(attn, "q_norm"):
        query_key = (_norm_weight(attn.q_norm), _norm_weight(attn.k_norm))  # type: ignore
        if query_key[0].shape != (attn.head_dim,):  # type: ignore
            raise Unsupported("queries are not normed head by head")
    after = (
        (module.post_attention_layernorm, module.post_feedforward_layernorm) if is_sandwich else ()
    )
    weights = [_norm_weight(n) for n in after] or [None, None]  # type: ignore
    return Norms(
        attention=_norm_weight(module.input_layernorm),  # type: ignore
        mlp=_norm_weight(mlp),  # type: ignore
        query_key=query_key,
        after_attention=weights[0],
        after_mlp=weights[1],
        eps=_eps(module.input_layernorm),  # type: ignore
    )


def _norm_weight(norm: nn.Module) -> Tensor:
    """fp32, as it multiplies: w, or Gemma's 1 + w, whichever gives what the module gives."""
    weight = norm.weight.detach().float()  # type: ignore
    probe = torch.linspace(-2, 3, weight.numel(), device=weight.device)
    unit = probe * torch.rsqrt(probe.square().mean() + _eps(norm))
    with torch.no_grad():
        got = norm(probe[None])[0].float()
    for candidate in (weight, 1 + weight):
        if torch.allclose(got, unit * candidate, rtol=2e-2, atol=2e-3):
            return candidate.contiguous()
    raise Unsupported(f"{type(norm).__name__} is not a root-mean-square norm")


def _eps(norm: nn.Module) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore


def _attention(attn) -> Attention:
    config = attn.config
    softcap = getattr(attn, "attn_logit_softcapping", None) or 0.0
    if softcap > _LARGEST_CAP or (softcap and attn.head_dim not in _CAPPED_DIMS):
        raise Unsupported(f"attention caps its logits at {softcap:g}, with {attn.head_dim} a head")
    if getattr(attn, "attention_dropout", 0.0):
        raise Unsupported("attention has dropout")
    if not getattr(attn, "is_causal", True) or hasattr(attn, "sinks"):
        raise Unsupported("attention is not plain causal attention")
    missing = getattr(config, "sliding_window", None) if not hasattr(attn, "layer_type") else None
    window = getattr(attn, "sliding_window", missing)
    return Attention(float(attn.scaling), int(window or 0), float(softcap))


def _is_gelu(mlp) -> bool:
    act = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    if act is None:
        raise Unsupported("the mlp has no activation")
    probe = torch.linspace(-4, 4, 64)
    got = act(probe)
    if torch.allclose(got, F.silu(probe), atol=1e-5):
        return False
    if torch.allclose(got, F.gelu(probe, approximate="tanh"), atol=1e-5):
        return True
    raise Unsupported(f"the activation {type(act).__name__} is not known")
