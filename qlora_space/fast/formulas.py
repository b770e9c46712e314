"""What kernels.py computes, in plain torch: for tensors that no kernel takes (CPU, float64), and as their reference.

Shapes and dtypes are those of the kernels, which say more. T tokens, H hidden, I intermediate, N outputs, R rank.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

Tensor = torch.Tensor
FP8_LARGEST = 448.0  # of float8_e4m3fn


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + added, its RMSNorm), each (T, H); weight: fp32 (H,). arXiv 1910.07467."""
    total = x if added is None else x + added
    wide = total.to(_wide(x))
    out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return total, out.to(x.dtype)


def rms_norm_backward(
    dout: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """Gradient of x (T, H), plus `residual`; no gradient of the weight, which is frozen."""
    dx = _vjp(lambda v: rms_norm(v, weight, eps)[1], x, dout)
    return dx if residual is None else (dx + residual).to(x.dtype)


def rotate(qkv: Tensor, heads: tuple[int, int], norms, cos, sin, eps: float, grads=None) -> Tensor:
    """Queries and keys, normed and rotated (RoPE, arXiv 2104.09864), side by side; given (dq, dk, dv): d(qkv)."""
    queries, keys = heads
    dim = qkv.shape[1] // (queries + 2 * keys)
    value_start = (queries + keys) * dim
    rotated = lambda t: _rotate(t, queries, keys, dim, norms, cos, sin, eps)  # noqa: E731
    if grads is None:
        return rotated(qkv[:, :value_start])
    dq, dk, dv = (g.flatten(1) for g in grads)
    return torch.cat([_vjp(rotated, qkv[:, :value_start], torch.cat([dq, dk], 1)), dv], 1)


def _rotate(qk, queries, keys, dim, norms, cos, sin, eps) -> Tensor:
    x = qk.to(_wide(qk)).unflatten(1, (queries + keys, dim))
    if norms is not None:
        weight = torch.cat([norms[0].expand(queries, dim), norms[1].expand(keys, dim)])
        x = rms_norm(x, weight, eps)[1]
    half = cos.shape[1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    x1, x2, rest = x.split([half, half, dim - 2 * half], -1)
    rotated = torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], -1)
    return rotated.flatten(1).to(qk.dtype)


def scaled_copies(
    sources: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float]
) -> Callable[[], None]:
    """Each call: target = scale * source for all pairs."""

    @torch.no_grad()
    def copy() -> None:
        scaled = torch._foreach_mul(list(sources), list(scales))
        torch._foreach_copy_(list(targets), scaled)

    return copy


def expand(
    h: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    to: Tensor | None = None,
) -> Tensor:
    """h (T, R) times bᵀ (R, N), plus bias (N,) and added (T, N); `to` is added to."""
    y = h @ b.t()
    y = y if bias is None else y + bias
    y = y if added is None else y + added
    return y if to is None else to.add_(y)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / scale in float8_e4m3fn, fp32 scale (T, 1)), so that the largest of each row becomes 448."""
    scale = x.abs().amax(1, keepdim=True).float() / FP8_LARGEST
    scale = torch.where(scale > 0, scale, 1.0)
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def to_fp8(weight: Tensor, scale: Tensor, *, is_transposed: bool) -> Tensor:
    """weight / scale in float8_e4m3fn: (N, K) to (N, K), or to (K, N)."""
    out = (weight.float() / scale).to(torch.float8_e4m3fn)
    return out.t().contiguous() if is_transposed else out


def gather(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table (V, H): (T, H)."""
    return table[ids]


def gated(gate_up: Tensor, h: Tensor, b: Tensor, a: Tensor, is_gelu: bool) -> tuple[Tensor, Tensor]:
    """act(gate) * up of gate_up + h bᵀ (T, 2 I), and its product with aᵀ. SwiGLU and GeGLU: arXiv 2002.05202."""
    acted = _gated(gate_up + h @ b.t(), is_gelu)
    return acted, acted @ a.t()


def gated_backward(
    gate_up: Tensor, h: Tensor, b: Tensor, a: Tensor, g: Tensor, grad: Tensor, is_gelu: bool
) -> Tensor:
    """In place: gate_up becomes its gradient, grad becomes act(gate) * up. Returns the gradient times b."""
    whole = gate_up + h @ b.t()
    gate_up.copy_(_vjp(lambda t: _gated(t, is_gelu), whole, grad + g @ a))
    grad.copy_(_gated(whole, is_gelu))
    return gate_up @ b


def _gated(gate_up: Tensor, is_gelu: bool) -> Tensor:
    gate, up = gate_up.to(_wide(gate_up)).chunk(2, -1)
    act = F.gelu(gate, approximate="tanh") if is_gelu else F.silu(gate)
    return (act * up).to(gate_up.dtype)


def cross_entropy(logits: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Losses (rows,) in nats; logits (rows, V) become their gradients in place; 0 for targets of -100."""

    def losses(z: Tensor) -> Tensor:
        z = z.to(_wide(z))
        z = cap * torch.tanh(z / cap) if cap else z
        return F.cross_entropy(z, targets, reduction="none")

    result = losses(logits)
    logits.copy_(_vjp(losses, logits.clone(), torch.ones_like(result)))
    return result


def _vjp(function, x: Tensor, grad: Tensor) -> Tensor:
    """Vector-Jacobian product: the gradient of x, given that of function(x)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        out = function(leaf)
        return torch.autograd.grad(out, leaf, grad.to(out.dtype))[0]


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
