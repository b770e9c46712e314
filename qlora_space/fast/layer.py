"""One decoder layer, forward and backward written out, so that what is kept in between is ours to choose.

x: (T, H), all documents one after the other. norm, qkv, rotation, attention, o, add, norm, gate_up, act, down, add;
Gemma also norms what o and down give. Autograd would keep every one of these until backward; gradient checkpointing
keeps x and computes all of it again, attention and `down` among it. Here each policy says what is kept, and only what
is missing is computed again, never `down`, whose output backward does not need. Below ALL the MLP takes a tile of
tokens after the other, so that what is as wide as the MLP is never there whole.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch

from qlora_space.fast import ops
from qlora_space.fast.attention import Attention, Documents
from qlora_space.fast.host_memory import HostBlock
from qlora_space.fast.linear import FusedLinear
from qlora_space.fast.offload import Offloader
from qlora_space.fast.policies import ActivationPolicy, LayerShape, tile_tokens

Tensor = torch.Tensor


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
class StepContext:
    """What all layers of one micro-step share. rotary: fp32 (cos, sin), each (T, rotated / 2), by type of layer."""

    documents: Documents
    rotary: dict[str | None, tuple[Tensor, Tensor]]
    policy: ActivationPolicy
    offloader: Offloader


@dataclass
class SavedActivations:
    """Intermediate tensors of a layer; None is not kept, and computed again in backward.

    `*_h` is an input times Aᵀ of its linear, (T, R); `middle` the sum after attention; `*_weight` are dequantized.
    """

    x: Any = None
    normed: Any = None
    qkv: Any = None
    qkv_h: Any = None
    qkv_weight: Any = None
    rotated: Any = None
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
    routing: Any = None  # of a mixture of experts


_ALWAYS = {"x", "down_h", "down_out", "routing"}
_SAVED_BY = {
    ActivationPolicy.OFFLOAD: _ALWAYS,
    ActivationPolicy.LAYER: _ALWAYS,
    ActivationPolicy.ATTENTION: _ALWAYS | {"attended", "attention", "o_h", "o_out", "middle"},
}
_SAVED_BY[ActivationPolicy.OFFLOAD_ATTENTION] = _SAVED_BY[ActivationPolicy.ATTENTION]
_SAVED_BY[ActivationPolicy.QKV] = _SAVED_BY[ActivationPolicy.ATTENTION] | {"qkv", "qkv_h"}
_SAVED_BY[ActivationPolicy.OFFLOAD_QKV] = _SAVED_BY[ActivationPolicy.QKV]
_SAVED_BY[ActivationPolicy.ALL] = _SAVED_BY[ActivationPolicy.QKV] | {"gate_up", "gate_up_h"}
_SAVED_BY[ActivationPolicy.WEIGHTS] = _SAVED_BY[ActivationPolicy.ALL] | {
    "normed",
    "rotated",
    "middle_normed",
}
# To host memory, where a policy keeps its tensors there.
_OFFLOADED = ("x", "qkv", "attended", "middle", "down_h", "down_out", "o_out")


@dataclass(frozen=True)
class Layer:
    """heads: of queries, and of keys; rotary: the type of layer that its cos and sin are for, if there are several."""

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
    def adapters(self) -> tuple[Any, ...]:
        """All that has adapters, in the order of `parameters`."""
        return self.linears

    @property
    def shape(self) -> LayerShape:
        queries, keys = self.heads
        attended = self.o.inputs
        return LayerShape(
            hidden=self.qkv.inputs,
            attended=attended,
            keys=attended // queries * keys,
            mlp=self.down.inputs,
            is_sandwich=self.norms.after_mlp is not None,
        )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for owner in self.adapters for p in owner.parameters]

    def forward(self, x: Tensor, context: StepContext) -> tuple[Tensor, SavedActivations]:
        """The layer's output (T, H), and what the policy keeps of it."""
        saved = SavedActivations(x=x)
        self._attend(saved, context)
        self._discard(saved, context, "normed", "rotated", "qkv_weight")
        out = self._tiled_mlp(saved, context)
        self._discard(saved, context, *(f.name for f in fields(saved)))
        self._offload(saved, context)
        return out, saved

    def _tiles(
        self, saved: SavedActivations, policy: ActivationPolicy
    ) -> tuple[list[SavedActivations], int]:
        """(tiles of the MLP's part of `saved`, which share the weights, or `saved` itself; tokens of a tile)."""
        tokens = len(saved.middle)
        size = tile_tokens(policy, tokens)
        if size == tokens:
            return [saved], size
        names = ("middle", "middle_normed", "down_h", "down_out")
        parts = {n: t.split(size) for n in names if (t := getattr(saved, n)) is not None}
        weights = {"gate_up_weight": self.gate_up.weight(), "down_weight": self.down.weight()}
        count = -(-tokens // size)
        return [
            SavedActivations(**weights, **{n: p[i] for n, p in parts.items()}) for i in range(count)
        ], size

    def _tiled_mlp(self, saved: SavedActivations, context: StepContext) -> Tensor:
        """The layer's output; overwrites the sum after attention if there are tiles and the policy does not keep it."""
        tiles, size = self._tiles(saved, context.policy)
        if len(tiles) == 1:
            return self._mlp(saved, context)
        is_kept = "middle" in _SAVED_BY[context.policy]
        out = torch.empty_like(saved.middle) if is_kept else saved.middle
        for tile, to in zip(tiles, out.split(size), strict=True):
            to.copy_(self._mlp(tile, context))
        saved.down_h = torch.cat([tile.down_h for tile in tiles])
        if self.norms.after_mlp is not None:
            saved.down_out = torch.cat([tile.down_out for tile in tiles])
        return out

    def _mlp(self, saved: SavedActivations, context: StepContext) -> Tensor:
        norms, op = self.norms, ops.on(saved.middle)
        self._project_gate_up(saved)
        self._discard(saved, context, "middle_normed", "gate_up_weight")
        acted, saved.down_h = op.gated(
            saved.gate_up, saved.gate_up_h, self.gate_up.b, self.down.a, self.is_gelu
        )
        self._discard(saved, context, "gate_up")
        added = saved.middle if norms.after_mlp is None else None
        out = self.down.forward(acted, saved.down_weight, added, saved.down_h)[0]
        saved.down_weight = None
        if norms.after_mlp is None:
            return out
        saved.down_out = out
        return op.rms_norm(out, norms.after_mlp, norms.eps)[1].add_(saved.middle)

    def _discard(self, saved: SavedActivations, context: StepContext, *names: str) -> None:
        """Of these, drop what the policy does not keep."""
        # The bus has no room for queries, keys and values of all layers.
        is_second = context.policy is ActivationPolicy.OFFLOAD_QKV and self.index % 2
        keeps = _SAVED_BY[ActivationPolicy.OFFLOAD_ATTENTION if is_second else context.policy]
        for name in set(names) - keeps:
            setattr(saved, name, () if name == "attention" else None)

    def _offload(self, saved: SavedActivations, context: StepContext) -> None:
        stays = context.policy > ActivationPolicy.OFFLOAD and self.index == context.offloader.last
        if context.policy.is_on_host and saved.x.is_cuda and not stays:
            moved = {n: getattr(saved, n) for n in _OFFLOADED if getattr(saved, n) is not None}
            context.offloader.store(self.index, moved)
            for name in moved:
                setattr(saved, name, None)

    def _attend(
        self, saved: SavedActivations, context: StepContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what is missing up to the sum after attention; returns q, k, v, each (T, heads, D)."""
        x, norms = saved.x, self.norms
        op = ops.on(x)
        if saved.normed is None:
            saved.normed = op.rms_norm(x, norms.attention, norms.eps)[1]
        if saved.qkv is None:
            saved.qkv_weight = self.qkv.weight()
            saved.qkv, saved.qkv_h = self.qkv.forward(saved.normed, saved.qkv_weight)
        cos, sin = context.rotary[self.rotary]
        queries, keys = self.heads
        if saved.rotated is None:
            saved.rotated = op.rotate(saved.qkv, self.heads, norms.query_key, cos, sin, norms.eps)
        q, k = saved.rotated.unflatten(1, (queries + keys, -1)).split([queries, keys], 1)
        v = saved.qkv.unflatten(1, (queries + 2 * keys, -1))[:, queries + keys :]
        if saved.attended is None:
            saved.attended, saved.attention = self.attention.forward(q, k, v, context.documents)
            flat = saved.attended.flatten(1)
            if norms.after_attention is None:
                saved.middle, saved.o_h = self.o.forward(flat, added=x)
            else:
                saved.o_out, saved.o_h = self.o.forward(flat)
                out = op.rms_norm(saved.o_out, norms.after_attention, norms.eps)[1]
                saved.middle, saved.middle_normed = op.rms_norm(x, norms.mlp, norms.eps, added=out)
        return q, k, v

    def _project_gate_up(self, saved: SavedActivations) -> None:
        """Compute gate_up, without its adapter's part, and its input, where they are missing."""
        if saved.middle_normed is None:
            op = ops.on(saved.middle)
            saved.middle_normed = op.rms_norm(saved.middle, self.norms.mlp, self.norms.eps)[1]
        if saved.gate_up is None:
            if saved.gate_up_weight is None:
                saved.gate_up_weight = self.gate_up.weight()
            saved.gate_up = self.gate_up.product(saved.middle_normed, saved.gate_up_weight)
            saved.gate_up_h = saved.middle_normed @ self.gate_up.a.t()

    def backward(
        self, dy: Tensor, saved: SavedActivations, context: StepContext, *, needs_dx: bool
    ) -> Tensor | None:
        """dx (T, H), if needed; the adapters' gradients are added to their linears'. Consumes `saved` and `dy`."""
        norms, op = self.norms, ops.on(dy)
        if saved.x is None:
            for name, value in context.offloader.load(self.index).items():
                setattr(saved, name, value)
        elif context.policy.is_on_host:
            context.offloader.fetch(self.index - 1)
        q, k, v = self._attend(saved, context)
        if context.policy is ActivationPolicy.OFFLOAD:  # computed again later
            saved.normed = saved.qkv_weight = None
        attended: Any = saved.attended
        dmiddle = self._tiled_mlp_backward(dy, saved, context.policy)
        saved.middle = None
        dout = dmiddle
        if norms.after_attention is not None:
            dout = op.rms_norm_backward(dmiddle, saved.o_out, norms.after_attention, norms.eps)
        dattended: Any = self.o.backward(dout, attended.flatten(1), saved.o_h)
        grads = self.attention.backward(
            dattended.view_as(attended), q, k, v, attended, saved.attention, context.documents
        )  # fmt: skip
        saved.attended = saved.attention = saved.rotated = attended = None
        cos, sin = context.rotary[self.rotary]
        dqkv = op.rotate(saved.qkv, self.heads, norms.query_key, cos, sin, norms.eps, grads)
        del q, k, v, grads
        saved.qkv = dattended = dout = None
        if saved.normed is None:
            saved.normed = op.rms_norm(saved.x, norms.attention, norms.eps)[1]
        dnormed = self.qkv.backward(
            dqkv, saved.normed, saved.qkv_h, saved.qkv_weight, needs_dx=needs_dx
        )
        if dnormed is None:
            return None
        return op.rms_norm_backward(dnormed, saved.x, norms.attention, norms.eps, residual=dmiddle)

    def _tiled_mlp_backward(
        self, dy: Tensor, saved: SavedActivations, policy: ActivationPolicy
    ) -> Tensor:
        """Gradient of the sum after attention; overwrites dy if there are tiles."""
        tiles, size = self._tiles(saved, policy)
        if len(tiles) == 1:
            return self._mlp_backward(dy, saved)
        for tile, part in zip(tiles, dy.split(size), strict=True):
            part.copy_(self._mlp_backward(part, tile))
        return dy

    def _mlp_backward(self, dy: Tensor, saved: SavedActivations) -> Tensor:
        norms, op = self.norms, ops.on(dy)
        self._project_gate_up(saved)
        dout = dy
        if norms.after_mlp is not None:
            dout = op.rms_norm_backward(dy, saved.down_out, norms.after_mlp, norms.eps)
        g_down = dout @ self.down.b
        d_acted = self.down.base_input_grad(dout, saved.down_weight)
        g = op.gated_backward(
            saved.gate_up,
            saved.gate_up_h,
            self.gate_up.b,
            self.down.a,
            g_down,
            d_acted,
            self.is_gelu,
        )
        acted, d_gate_up, saved.gate_up = d_acted, saved.gate_up, None  # both were overwritten
        self.down.add_weight_grads(dout, g_down, acted, saved.down_h)
        del d_acted, acted
        d_normed = self.gate_up.input_grad(d_gate_up, g, saved.gate_up_weight)
        self.gate_up.add_weight_grads(d_gate_up, g, saved.middle_normed, saved.gate_up_h)
        del d_gate_up
        saved.middle_normed = saved.gate_up_weight = None
        return op.rms_norm_backward(d_normed, saved.middle, norms.mlp, norms.eps, residual=dy)
