"""One decoder layer, forward and backward written out, so that what is kept in between is ours to choose.

x: (T, H), all documents one after the other. norm, qkv, rotation, attention, o, add, norm, gate_up, act, down, add;
Gemma also norms what o and down give. Rungs, from least memory to least work (`down` is never computed again):
    OFFLOAD   the input, in pinned host memory        OFFLOAD_ATTENTION  as ATTENTION, in pinned host memory
    OFFLOAD_QKV  as QKV in every second layer, as ATTENTION in the others, in pinned host memory
    LAYER     the input                               ATTENTION + attention's output and the sum after it
    QKV       + queries, keys, values                 ALL       + gate and up
    WEIGHTS   + norms, turned queries and keys; and, from step to step, the weights as they are multiplied, and
              an embedding table that lies in host memory
Below ALL the MLP takes a tile of tokens after the other, so that what is as wide as the MLP is never there whole.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch

from qlora_space.fast import ops
from qlora_space.fast.attention import Attention, Documents
from qlora_space.fast.host_memory import HostBlock
from qlora_space.fast.linear import FusedLinear
from qlora_space.fast.offload import Offloader

Tensor = torch.Tensor


class ActivationPolicy(IntEnum):
    OFFLOAD = 0
    OFFLOAD_ATTENTION = 1
    OFFLOAD_QKV = 2
    LAYER = 3
    ATTENTION = 4
    QKV = 5
    ALL = 6
    WEIGHTS = 7

    @property
    def is_on_host(self) -> bool:
        return self < ActivationPolicy.LAYER


@dataclass(frozen=True)
class Norms:
    """fp32 weights as they multiply (Gemma's 1 + w is added up already); None where a layer has no such norm."""

    attention: Tensor
    mlp: Tensor
    query_key: tuple[Tensor, Tensor] | None
    after_attention: Tensor | None
    after_mlp: Tensor | None
    eps: float


@dataclass(frozen=True)
class Call:
    """What all layers of one micro-step share; rotary: (cos, sin) fp32 (T, rotated / 2) per layer type."""

    documents: Documents
    rotary: dict[str | None, tuple[Tensor, Tensor]]
    policy: ActivationPolicy
    offloader: Offloader


@dataclass
class Kept:
    """Intermediate tensors; None is computed again in backward."""

    x: Any = None
    normed: Any = None
    qkv: Any = None
    qkv_h: Any = None
    qkv_weight: Any = None
    turned: Any = None
    attended: Any = None
    attention: Any = ()
    o_h: Any = None
    o_out: Any = None
    middle: Any = None
    middle_normed: Any = None
    gate_up: Any = None
    gate_up_h: Any = None
    gate_up_weight: Any = None
    down_weight: Any = None
    down_h: Any = None
    down_out: Any = None


_ALWAYS = {"x", "down_h", "down_out"}
_KEPT_BY = {
    ActivationPolicy.OFFLOAD: _ALWAYS,
    ActivationPolicy.LAYER: _ALWAYS,
    ActivationPolicy.ATTENTION: _ALWAYS | {"attended", "attention", "o_h", "o_out", "middle"},
}
_KEPT_BY[ActivationPolicy.OFFLOAD_ATTENTION] = _KEPT_BY[ActivationPolicy.ATTENTION]
_KEPT_BY[ActivationPolicy.QKV] = _KEPT_BY[ActivationPolicy.ATTENTION] | {"qkv", "qkv_h"}
_KEPT_BY[ActivationPolicy.OFFLOAD_QKV] = _KEPT_BY[ActivationPolicy.QKV]
_KEPT_BY[ActivationPolicy.ALL] = _KEPT_BY[ActivationPolicy.QKV] | {"gate_up", "gate_up_h"}
_KEPT_BY[ActivationPolicy.WEIGHTS] = _KEPT_BY[ActivationPolicy.ALL] | {
    "normed",
    "turned",
    "middle_normed",
}
# To the host, where there.
_MOVED = ("x", "qkv", "attended", "middle", "down_h", "down_out", "o_out")
# Tokens of the MLP's tiles: OFFLOAD trades 0.6 % of its speed for memory (docs/PERFORMANCE.md).
_TILE_TOKENS = {ActivationPolicy.OFFLOAD: 4096}
_COMMON_TILE_TOKENS = 8192


def tile_tokens(policy: ActivationPolicy, tokens: int) -> int:
    """How many of `tokens` tokens the MLP takes at once."""
    return (
        tokens
        if policy >= ActivationPolicy.ALL
        else min(tokens, _TILE_TOKENS.get(policy, _COMMON_TILE_TOKENS))
    )


@dataclass(frozen=True)
class Layer:
    index: int
    qkv: FusedLinear
    o: FusedLinear
    gate_up: FusedLinear
    down: FusedLinear
    norms: Norms
    attention: Attention
    heads: tuple[int, int]
    is_gelu: bool
    rotary: str | None
    host_block: HostBlock | None = None  # its packed weights, where they are not on the GPU

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        return (self.qkv, self.o, self.gate_up, self.down)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for linear in self.linears for p in linear.parameters]

    def forward(self, x: Tensor, call: Call) -> tuple[Tensor, Kept]:
        """The layer's output, and what its policy keeps."""
        kept = Kept(x=x)
        self._attend(kept, call)
        self._let_go(kept, call, "normed", "turned", "qkv_weight")
        out = self._tiled_mlp(kept, call)
        self._let_go(kept, call, *(f.name for f in fields(kept)))
        self._offload(kept, call)
        return out, kept

    def _tiles(self, kept: Kept, policy: ActivationPolicy) -> tuple[list[Kept], int]:
        """`kept` itself, or its MLP's part in tiles of tokens, which share the weights; and a tile's tokens."""
        tokens = len(kept.middle)
        size = tile_tokens(policy, tokens)
        if size == tokens:
            return [kept], size
        names = ("middle", "middle_normed", "down_h", "down_out")
        parts = {n: t.split(size) for n in names if (t := getattr(kept, n)) is not None}
        weights = {"gate_up_weight": self.gate_up.weight(), "down_weight": self.down.weight()}
        count = -(-tokens // size)
        return [Kept(**weights, **{n: p[i] for n, p in parts.items()}) for i in range(count)], size

    def _tiled_mlp(self, kept: Kept, call: Call) -> Tensor:
        """The layer's output, in the place of the sum after attention if there are tiles and it is not kept."""
        tiles, size = self._tiles(kept, call.policy)
        if len(tiles) == 1:
            return self._mlp(kept, call)
        is_kept = "middle" in _KEPT_BY[call.policy]
        out = torch.empty_like(kept.middle) if is_kept else kept.middle
        for tile, to in zip(tiles, out.split(size), strict=True):
            to.copy_(self._mlp(tile, call))
        kept.down_h = torch.cat([tile.down_h for tile in tiles])
        if self.norms.after_mlp is not None:
            kept.down_out = torch.cat([tile.down_out for tile in tiles])
        return out

    def _mlp(self, kept: Kept, call: Call) -> Tensor:
        norms, op = self.norms, ops.on(kept.middle)
        self._widen(kept)
        self._let_go(kept, call, "middle_normed", "gate_up_weight")
        acted, kept.down_h = op.gated(
            kept.gate_up, kept.gate_up_h, self.gate_up.b, self.down.a, self.is_gelu
        )
        self._let_go(kept, call, "gate_up")
        added = kept.middle if norms.after_mlp is None else None
        out = self.down.forward(acted, kept.down_weight, added, kept.down_h)[0]
        kept.down_weight = None
        if norms.after_mlp is None:
            return out
        kept.down_out = out
        return op.rms_norm(out, norms.after_mlp, norms.eps)[1].add_(kept.middle)

    def _let_go(self, kept: Kept, call: Call, *names: str) -> None:
        """Of these, what the policy does not keep. The bus has no room for queries, keys and values of all layers."""
        is_second = call.policy is ActivationPolicy.OFFLOAD_QKV and self.index % 2
        keeps = _KEPT_BY[ActivationPolicy.OFFLOAD_ATTENTION if is_second else call.policy]
        for name in set(names) - keeps:
            setattr(kept, name, () if name == "attention" else None)

    def _offload(self, kept: Kept, call: Call) -> None:
        stays = call.policy > ActivationPolicy.OFFLOAD and self.index == call.offloader.last
        if call.policy.is_on_host and kept.x.is_cuda and not stays:
            moved = {n: getattr(kept, n) for n in _MOVED if getattr(kept, n) is not None}
            call.offloader.store(self.index, moved)
            for name in moved:
                setattr(kept, name, None)

    def _attend(self, kept: Kept, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to the sum after attention that is not kept yet; returns q, k, v."""
        x, norms = kept.x, self.norms
        op = ops.on(x)
        if kept.normed is None:
            kept.normed = op.rms_norm(x, norms.attention, norms.eps)[1]
        if kept.qkv is None:
            kept.qkv_weight = self.qkv.weight()
            kept.qkv, kept.qkv_h = self.qkv.forward(kept.normed, kept.qkv_weight)
        cos, sin = call.rotary[self.rotary]
        queries, keys = self.heads
        if kept.turned is None:
            kept.turned = op.rotate(kept.qkv, self.heads, norms.query_key, cos, sin, norms.eps)
        q, k = kept.turned.unflatten(1, (queries + keys, -1)).split([queries, keys], 1)
        v = kept.qkv.unflatten(1, (queries + 2 * keys, -1))[:, queries + keys :]
        if kept.attended is None:
            kept.attended, kept.attention = self.attention.forward(q, k, v, call.documents)
            flat = kept.attended.flatten(1)
            if norms.after_attention is None:
                kept.middle, kept.o_h = self.o.forward(flat, added=x)
            else:
                kept.o_out, kept.o_h = self.o.forward(flat)
                out = op.rms_norm(kept.o_out, norms.after_attention, norms.eps)[1]
                kept.middle, kept.middle_normed = op.rms_norm(x, norms.mlp, norms.eps, added=out)
        return q, k, v

    def _widen(self, kept: Kept) -> None:
        """gate_up, as yet without its adapter's part, and its input, where not kept."""
        if kept.middle_normed is None:
            op = ops.on(kept.middle)
            kept.middle_normed = op.rms_norm(kept.middle, self.norms.mlp, self.norms.eps)[1]
        if kept.gate_up is None:
            if kept.gate_up_weight is None:
                kept.gate_up_weight = self.gate_up.weight()
            kept.gate_up = self.gate_up.product(kept.middle_normed, kept.gate_up_weight)
            kept.gate_up_h = kept.middle_normed @ self.gate_up.a.t()

    def backward(self, dy: Tensor, kept: Kept, call: Call, *, needs_dx: bool) -> Tensor | None:
        """dx; gradients of the adapters are added to those of their linears. Uses `kept` and `dy` up."""
        norms, op = self.norms, ops.on(dy)
        if kept.x is None:
            for name, value in call.offloader.load(self.index).items():
                setattr(kept, name, value)
        elif call.policy.is_on_host:
            call.offloader.fetch(self.index - 1)
        q, k, v = self._attend(kept, call)
        if call.policy is ActivationPolicy.OFFLOAD:  # both are soon made again
            kept.normed = kept.qkv_weight = None
        attended: Any = kept.attended
        dmiddle = self._tiled_mlp_backward(dy, kept, call.policy)
        kept.middle = None
        dout = dmiddle
        if norms.after_attention is not None:
            dout = op.rms_norm_backward(dmiddle, kept.o_out, norms.after_attention, norms.eps)
        dattended: Any = self.o.backward(dout, attended.flatten(1), kept.o_h)
        grads = self.attention.backward(
            dattended.view_as(attended), q, k, v, attended, kept.attention, call.documents
        )  # fmt: skip
        kept.attended = kept.attention = kept.turned = attended = None
        cos, sin = call.rotary[self.rotary]
        dqkv = op.rotate(kept.qkv, self.heads, norms.query_key, cos, sin, norms.eps, grads)
        del q, k, v, grads
        kept.qkv = dattended = dout = None
        if kept.normed is None:
            kept.normed = op.rms_norm(kept.x, norms.attention, norms.eps)[1]
        dnormed = self.qkv.backward(
            dqkv, kept.normed, kept.qkv_h, kept.qkv_weight, needs_dx=needs_dx
        )
        if dnormed is None:
            return None
        return op.rms_norm_backward(dnormed, kept.x, norms.attention, norms.eps, residual=dmiddle)

    def _tiled_mlp_backward(self, dy: Tensor, kept: Kept, policy: ActivationPolicy) -> Tensor:
        """Gradient of the sum after attention; in the place of dy if there are tiles."""
        tiles, size = self._tiles(kept, policy)
        if len(tiles) == 1:
            return self._mlp_backward(dy, kept)
        for tile, part in zip(tiles, dy.split(size), strict=True):
            part.copy_(self._mlp_backward(part, tile))
        return dy

    def _mlp_backward(self, dy: Tensor, kept: Kept) -> Tensor:
        norms, op = self.norms, ops.on(dy)
        self._widen(kept)
        dout = dy
        if norms.after_mlp is not None:
            dout = op.rms_norm_backward(dy, kept.down_out, norms.after_mlp, norms.eps)
        g_down = dout @ self.down.b
        d_acted = self.down.base_input_grad(dout, kept.down_weight)
        g = op.gated_backward(
            kept.gate_up, kept.gate_up_h, self.gate_up.b, self.down.a, g_down, d_acted, self.is_gelu
        )
        acted, d_gate_up, kept.gate_up = d_acted, kept.gate_up, None  # both were overwritten
        self.down.add_weight_grads(dout, g_down, acted, kept.down_h)
        del d_acted, acted
        d_normed = self.gate_up.input_grad(d_gate_up, g, kept.gate_up_weight)
        self.gate_up.add_weight_grads(d_gate_up, g, kept.middle_normed, kept.gate_up_h)
        del d_gate_up
        kept.middle_normed = kept.gate_up_weight = None
        return op.rms_norm_backward(d_normed, kept.middle, norms.mlp, norms.eps, residual=dy)
