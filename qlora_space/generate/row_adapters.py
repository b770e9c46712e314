"""LoRA with a strength for each row of a batch, so that one pass answers with the base and with adapters on it.

Row i of a batch computes  y = W x + sum over adapters a of  strength[i, a] B_a A_a x  (arXiv 2106.09685, scaled as peft
does). A row without strength is the base, bit for bit: what is added to it is zero.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
Product = Callable[..., Tensor]  # of x, and of a LowRank or None that is added to it
_WITHOUT_ROWS = {"opt"}  # types that give linears (rows * tokens, width)


class Unsupported(Exception):
    """Why rows of this model cannot have adapters of their own; answers are then made in another way."""


class RowAdapters:
    """The adapters of a model, by row. `strength` (rows, adapters): 1 as trained, 0 the base; None: all rows are."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], product: Callable[..., Product]
    ) -> None:
        """`product` makes the frozen product of a linear module. Raises Unsupported."""
        if getattr(getattr(model, "config", None), "model_type", "") in _WITHOUT_ROWS:
            raise Unsupported("its linears get tokens without their rows")
        self._names = tuple(names)
        self._layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        for layer in self._layers:
            _check(layer, self._names)
        adapted = {id(m) for layer in self._layers for m in (layer, layer.base_layer)}  # type: ignore[attr-defined]
        self._plain = [m for m in model.modules() if is_packed(m) and id(m) not in adapted]
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._forwards = [(layer, self._adapted(layer, product)) for layer in self._layers]
        self._forwards += [(m, product(m)) for m in self._plain]
        self._by_rank: dict[tuple[int, torch.dtype], Tensor] = {}
        self._strength: Tensor | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Modules of the model compute by row meanwhile."""
        try:
            for module, forward in self._forwards:
                module.forward = forward  # type: ignore[assignment]
            yield
        finally:
            for module, _ in self._forwards:
                vars(module).pop("forward", None)

    def set(self, strength: Tensor | None) -> None:
        """Of the rows that the next passes have."""
        self._strength = strength
        self._by_rank = {}

    def _adapted(self, layer: Any, product: Callable[..., Product]) -> Product:
        base = product(layer.base_layer)
        held = [name for name in self._names if name in layer.lora_A]
        if not held:
            return base
        a = torch.cat([layer.lora_A[name].weight for name in held])
        scaled = [layer.lora_B[name].weight * layer.scaling[name] for name in held]
        b = torch.cat(scaled, dim=1)
        columns = self._at(tuple(self._names.index(n) for n in held for _ in range(layer.r[n])), a)
        copies: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._strength is None:
                return base(x)
            if x.dtype not in copies:
                copies[x.dtype] = (a.detach().to(x.dtype), b.detach().to(x.dtype).contiguous())
            return base(x, LowRank(*copies[x.dtype], self._columns(columns, x.dtype)))

        return forward

    def _at(self, columns: tuple[int, ...], like: Tensor) -> Tensor:
        """The adapter of each rank, one tensor for all layers alike: nothing is copied while a pass is captured."""
        if columns not in self._indices:
            self._indices[columns] = torch.tensor(columns, device=like.device)
        return self._indices[columns]

    def _columns(self, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """(rows, 1, ranks): the strength of each row for each rank of a layer's adapters."""
        key = (id(columns), dtype)
        if key not in self._by_rank:
            assert self._strength is not None
            self._by_rank[key] = self._strength.index_select(1, columns)[:, None].to(dtype)
        return self._by_rank[key]


@dataclass(frozen=True)
class LowRank:
    """Adapters on one linear: `down` (ranks, inputs), `up` (outputs, ranks), `strength` (rows, 1, ranks)."""

    down: Tensor
    up: Tensor
    strength: Tensor

    def of_rows(self, count: int) -> "LowRank":
        """For `count` rows of one token: `strength` (count, ranks)."""
        rows, _, ranks = self.strength.shape
        strength = self.strength.expand(rows, count // rows, ranks).reshape(count, ranks)
        return replace(self, strength=strength)


def with_adapter(product: Callable[[Tensor], Tensor]) -> Product:
    """A product of x (rows, tokens, inputs) to which an adapter is added; latent attention (MiniCPM3) gives
    (rows, 1, tokens, inputs)."""

    def forward(x: Tensor, adapter: LowRank | None = None) -> Tensor:
        y = product(x)
        if adapter is None:
            return y
        rows, _, ranks = adapter.strength.shape
        strength = adapter.strength.view(rows, *[1] * (x.dim() - 2), ranks)
        return y + F.linear(F.linear(x, adapter.down) * strength, adapter.up)

    return forward


def is_packed(module: nn.Module) -> bool:
    """A linear whose weight is held in codes."""
    has_state = getattr(getattr(module, "weight", None), "quant_state", None) is not None
    return has_state or hasattr(module, "dequantize_into")


def _check(layer: Any, names: Sequence[str]) -> None:
    if not isinstance(layer.base_layer, nn.Linear):
        raise Unsupported(f"an adapter sits on a {type(layer.base_layer).__name__}")
    if isinstance(layer.base_layer, Linear8bitLt):
        raise Unsupported("the rows of an 8-bit product change each other")
    if layer.merged:
        raise Unsupported("an adapter is merged")
    for name in names:
        if name in layer.lora_variant:
            raise Unsupported("an adapter is no plain LoRA")
        if name in layer.lora_B and layer.lora_B[name].bias is not None:
            raise Unsupported("an adapter has a bias")
