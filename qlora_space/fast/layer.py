"""One decoder layer, forward and backward written out, so that what is kept in between is ours to choose.

x: (T, H), all documents one after the other. norm, qkv, rotation, attention, o, add, norm, gate_up, act, down, add;
Gemma also norms what o and down give. Rungs, from least memory to least work (`down` is never computed again):
    OFFLOAD   the input, in pinned host memory        LAYER   the input
    ATTENTION + attention's output and the sum after it  QKV  + queries, keys, values     ALL  + gate and up
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch

from qlora_space.fast import ops
from qlora_space.fast.attention import Attention, Documents
from qlora_space.fast.linear import FusedLinear
from qlora_space.fast.offload import Offloader

Tensor = torch.Tensor


class Rung(IntEnum):
    OFFLOAD = 0
    LAYER = 1
    ATTENTION = 2
    QKV = 3
    ALL = 4


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
    rung: Rung
    offloader: Offloader


@dataclass
class Kept:
    """Intermediate tensors; None is computed again in backward."""

    x: Any = None
    normed: Any = None
    qkv: Any = None
    qkv_h: Any = None
    attended: Any = None
    attention: tuple = ()
    o_h: Any = None
    o_out: Any = None
    middle: Any = None
    middle_normed: Any = None
    gate_up: Any = None
    gate_up_h: Any = None
    down_h: Any = None
    down_out: Any = None


_RUNG_OF = {
    "x": Rung.OFFLOAD, "down_h": Rung.OFFLOAD, "down_out": Rung.OFFLOAD,
    "attended": Rung.ATTENTION, "attention": Rung.ATTENTION, "o_h": Rung.ATTENTION,
    "o_out": Rung.ATTENTION, "middle": Rung.ATTENTION,
    "qkv": Rung.QKV, "qkv_h": Rung.QKV, "gate_up": Rung.ALL, "gate_up_h": Rung.ALL,
}  # fmt: skip


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

    @property
    def linears(self) -> tuple[FusedLinear, ...]:
        return (self.qkv, self.o, self.gate_up, self.down)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for linear in self.linears for p in linear.parameters]

    def __call__(self, x: Tensor, call: Call) -> Tensor:
        return _LayerFunction.apply(x, self, call, *self.parameters)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, call: Call) -> tuple[Tensor, Kept]:
        kept = Kept(x=x)
        self._attend(kept, call)
        self._widen(kept)
        assert kept.gate_up is not None
        assert kept.middle is not None
        acted = ops.on(x).gated(kept.gate_up, self.is_gelu)
        if call.rung < Rung.ALL:
            kept.gate_up = None
        out, kept.down_h = self.down.forward(acted)
        if self.norms.after_mlp is not None:
            kept.down_out = out
            out = ops.on(x).rms_norm(out, self.norms.after_mlp, self.norms.eps)[1]
        return out.add_(kept.middle), kept

    def _attend(self, kept: Kept, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to the sum after attention that is not kept yet; returns q, k, v."""
        x, norms = kept.x, self.norms
        assert x is not None
        op = ops.on(x)
        kept.normed = op.rms_norm(x, norms.attention, norms.eps)[1]
        if kept.qkv is None:
            kept.qkv, kept.qkv_h = self.qkv.forward(kept.normed)
        cos, sin = call.rotary[self.rotary]
        queries, keys = self.heads
        turned = op.rotate(kept.qkv, self.heads, norms.query_key, cos, sin, norms.eps)
        q, k = turned.unflatten(1, (queries + keys, -1)).split([queries, keys], 1)
        v = kept.qkv.unflatten(1, (queries + 2 * keys, -1))[:, queries + keys :]
        if kept.attended is None:
            kept.attended, kept.attention = self.attention.forward(q, k, v, call.documents)
            out, kept.o_h = self.o.forward(kept.attended.flatten(1))
            if norms.after_attention is not None:
                kept.o_out = out
                out = op.rms_norm(out, norms.after_attention, norms.eps)[1]
            kept.middle, kept.middle_normed = op.rms_norm(x, norms.mlp, norms.eps, added=out)
        return q, k, v

    def _widen(self, kept: Kept) -> None:
        """gate_up and its input, where not kept."""
        assert kept.middle is not None
        if kept.middle_normed is None:
            op = ops.on(kept.middle)
            kept.middle_normed = op.rms_norm(kept.middle, self.norms.mlp, self.norms.eps)[1]
        if kept.gate_up is None:
            kept.gate_up, kept.gate_up_h = self.gate_up.forward(kept.middle_normed)

    def backward(self, dy: Tensor, kept: Kept, call: Call, *, needs_dx: bool):
        """(dx or None, gradients in the order of `parameters`)."""
        norms, op = self.norms, ops.on(dy)
        q, k, v = self._attend(kept, call)
        self._widen(kept)
        dmiddle, mlp_grads = self._mlp_backward(dy, kept)
        dout = dmiddle
        if norms.after_attention is not None:
            dout = op.rms_norm_backward(dmiddle, kept.o_out, norms.after_attention, norms.eps)
        dattended, g = self.o.input_grad(dout)
        o_grads = self.o.weight_grads(dout, g, kept.attended.flatten(1), kept.o_h)  # type: ignore
        grads = self.attention.backward(
            dattended.view_as(kept.attended), q, k, v, kept.attended, kept.attention, call.documents
        )  # fmt: skip
        cos, sin = call.rotary[self.rotary]
        dqkv = op.rotate(kept.qkv, self.heads, norms.query_key, cos, sin, norms.eps, grads)
        dnormed, g = self.qkv.input_grad(dqkv) if needs_dx else (None, dqkv @ self.qkv.b)
        qkv_grads = self.qkv.weight_grads(dqkv, g, kept.normed, kept.qkv_h)  # type: ignore
        dx = None
        if needs_dx:
            dx = op.rms_norm_backward(dnormed, kept.x, norms.attention, norms.eps, residual=dmiddle)
        return dx, [*qkv_grads, *o_grads, *mlp_grads]

    def _mlp_backward(self, dy: Tensor, kept: Kept) -> tuple[Tensor, list[Tensor]]:
        """Gradient of the sum after attention, and those of gate_up and down."""
        norms, op = self.norms, ops.on(dy)
        dout = dy
        if norms.after_mlp is not None:
            dout = op.rms_norm_backward(dy, kept.down_out, norms.after_mlp, norms.eps)
        dacted, g = self.down.input_grad(dout)
        op.gated_backward(kept.gate_up, dacted, self.is_gelu)
        acted, dgate_up, kept.gate_up = dacted, kept.gate_up, None  # both were overwritten
        down_grads = self.down.weight_grads(dout, g, acted, kept.down_h)  # type: ignore
        del dacted, acted
        dnormed, g = self.gate_up.input_grad(dgate_up)  # type: ignore
        grads = self.gate_up.weight_grads(dgate_up, g, kept.middle_normed, kept.gate_up_h)  # type: ignore
        del dgate_up
        kept.middle_normed = None
        dmiddle = op.rms_norm_backward(dnormed, kept.middle, norms.mlp, norms.eps, residual=dy)
        return dmiddle, [*grads, *down_grads]


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: Layer, call: Call, *parameters: Tensor) -> Tensor:
        out, kept = layer.forward(x, call)
        for f in fields(kept):
            if call.rung < _RUNG_OF.get(f.name, 9):
                setattr(kept, f.name, () if f.name == "attention" else None)
        if call.rung is Rung.OFFLOAD and x.is_cuda:
            call.offloader.store(layer.index, x)
            kept.x = None
        ctx.layer, ctx.call, ctx.kept = layer, call, kept
        return out

    @staticmethod
    def backward(ctx, dy: Tensor):  # type: ignore[override]
        layer, call, kept = ctx.layer, ctx.call, ctx.kept
        ctx.kept = None
        if kept.x is None:
            kept.x = call.offloader.load(layer.index)
        needs_dx = ctx.needs_input_grad[0]
        dx, grads = layer.backward(dy.contiguous(), kept, call, needs_dx=needs_dx)
        return dx, None, None, *grads
