"""Parts of a model's pass of one token a row, each as one kernel where Triton is there: norms, rotations, attention.

A model's own Python makes such a pass of some forty kernels a layer, most of which take longer to begin than to run.
What is put in place of the model's own is compared with it first, on random numbers, and left alone where they differ.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Tensor = torch.Tensor
_NAME = "one_token"  # of the attention, among transformers' own
_CLOSE = 2e-2  # of 16-bit results that are rounded at other places


def few_rows_on(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The kernels, where they can run."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return None
    try:
        from qlora_space.generate import few_rows
    except ImportError:  # no Triton for this system
        return None
    return few_rows


class OneToken:
    """What of a model has a kernel of its own."""

    def __init__(self, model: nn.Module, few_rows: ModuleType | None) -> None:
        """few_rows: the kernels; nothing of the model is replaced without them."""
        self._norms: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._rotaries: list[tuple[ModuleType, Callable[..., Any]]] = []
        self._configs: list[Any] = []
        if few_rows is None:
            return
        device, dtype = next((p.device, p.dtype) for p in model.parameters() if p.dim() == 1)
        with torch.inference_mode():
            self._norms = _norms_of(model, device, dtype)
            self._rotaries = _rotaries_of(model, device, dtype)
        attentions = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
        configs: list[Any] = [m.config for m in attentions if hasattr(m, "config")]
        of_sdpa = [c for c in configs if c._attn_implementation == "sdpa"]
        self._configs = list({id(config): config for config in of_sdpa}.values())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A pass of one token a row runs by the kernels meanwhile."""
        own = [module.apply_rotary_pos_emb for module, _ in self._rotaries]
        try:
            for module, forward in self._norms:
                module.forward = forward  # type: ignore[assignment]
            for module, turned in self._rotaries:
                module.apply_rotary_pos_emb = turned  # type: ignore[attr-defined]
            for config in self._configs:
                config._attn_implementation = _NAME
            yield
        finally:
            for module, _ in self._norms:
                vars(module).pop("forward", None)
            for (module, _), function in zip(self._rotaries, own, strict=True):
                module.apply_rotary_pos_emb = function  # type: ignore[attr-defined]
            for config in self._configs:
                config._attn_implementation = "sdpa"


def _norms_of(
    model: nn.Module, device: torch.device, dtype: torch.dtype
) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
    kinds: dict[tuple[type, int], float | None] = {}
    found = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if "RMSNorm" not in type(module).__name__ or weight is None or weight.dim() != 1:
            continue
        kind = (type(module), len(weight))
        if kind not in kinds:
            kinds[kind] = _added_to_weight(module, device, dtype)
        if (added := kinds[kind]) is not None:
            found.append((module, _norm(module, added)))
    return found


def _added_to_weight(module: nn.Module, device: torch.device, dtype: torch.dtype) -> float | None:
    """0, or 1 where a norm multiplies by 1 + weight as Gemma's; None where it is something else."""
    x = torch.randn(3, 1, module.weight.shape[0], device=device, dtype=dtype)  # type: ignore[union-attr]
    own = module(x)
    for added in (0.0, 1.0):
        if _is_close(_norm(module, added)(x), own):
            return added
    return None


def _norm(module: Any, added: float) -> Callable[..., Tensor]:
    from qlora_space.fast import kernels

    weight = module.weight.detach().float() + added
    eps = next(
        (getattr(module, n) for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)),
        1e-6,
    )

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return kernels.rms_norm(rows, weight, eps)[1].view(x.shape)

    return forward


def _rotaries_of(
    model: nn.Module, device: torch.device, dtype: torch.dtype
) -> list[tuple[ModuleType, Callable[..., Any]]]:
    names = {type(m).__module__ for m in model.modules() if type(m).__name__.endswith("Attention")}
    modules = [sys.modules[name] for name in sorted(names)]
    found = []
    for module in modules:
        own = getattr(module, "apply_rotary_pos_emb", None)
        if own is not None and _turns_alike(own, device, dtype):
            found.append((module, _turning(own)))
    return found


def _turning(own: Callable[..., Any]) -> Callable[..., Any]:
    def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        wanted = (q.shape[0], 1, q.shape[-1])
        is_known = q.dim() == 4 and q.shape[2] == 1 and tuple(cos.shape) == wanted
        is_plain = q.stride(-1) == 1 and k.stride(-1) == 1 and cos.is_contiguous() and not args
        if not (is_known and is_plain and sin.is_contiguous() and q.dtype == cos.dtype) or kwargs:
            return own(q, k, cos, sin, *args, **kwargs)
        from qlora_space.generate import few_rows

        return few_rows.rotate(q, k, cos, sin)

    return turned


def _turns_alike(own: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> bool:
    q, k = (
        torch.randn(2, heads, 1, 32, device=device, dtype=torch.float32).to(dtype)
        for heads in (4, 2)
    )
    angle = torch.randn(2, 1, 16, device=device).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    try:
        theirs = own(q, k, cos, sin)
        ours = _turning(own)(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return False
    return all(_is_close(a, b) for a, b in zip(ours, theirs, strict=True))


def _is_close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=_CLOSE, rtol=_CLOSE)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' seam: queries (rows, heads, 1, D), keys and values (rows, key heads, length, D)."""
    is_known = query.shape[2] == 1 and key.shape == value.shape and key.stride() == value.stride()
    is_plain = query.stride(-1) == 1 and key.stride(-1) == 1 and key.shape[-1] <= 256
    has_mask = attention_mask is not None and attention_mask.dtype == torch.bool
    if not (is_known and is_plain and has_mask) or kwargs.get("s_aux") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    from qlora_space.generate import few_rows

    mask = attention_mask.contiguous()  # type: ignore[union-attr]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return few_rows.attend(query, key, value, mask, scale), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
