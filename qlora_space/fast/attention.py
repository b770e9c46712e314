"""Causal attention inside documents that lie one after the other: (T, heads, D), with fewer heads for k and v.

Forward and backward are separate calls, as a layer decides by itself what it keeps in between: cuDNN for rows that are
one document each (Hopper), FlashAttention's variable lengths (arXiv 2307.08691) for all others, kernels of our own
where logits are capped, a formula on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from qlora_space.fast import ops

Tensor = torch.Tensor
# torch's public varlen_attn has a backward only through autograd, which would keep q, k, v and out of every layer.
_aten = torch.ops.aten


@dataclass(frozen=True)
class Documents:
    """starts: int32 (documents + 1), the first token of each and T at the end; empty documents may follow.

    longest: no document is longer; uniform: the length of every document if all are as long, else 0.
    """

    starts: Tensor
    longest: int
    uniform: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Documents":
        """On the CPU."""
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        is_uniform = min(lengths) == max(lengths)
        return cls(starts, max(lengths), max(lengths) if is_uniform else 0)

    @property
    def lengths(self) -> list[int]:
        """Waits for the device."""
        return self.starts.diff().tolist()

    def spans(self, tokens: int, window: int) -> tuple[Tensor, Tensor]:
        """int32 (T,): the first key that each query sees, and one more than the last query that sees each key."""
        token = torch.arange(tokens, dtype=torch.int32, device=self.starts.device)
        following = torch.searchsorted(self.starts, token, right=True)
        begins, ends = self.starts[following - 1], self.starts[following]
        if not window:
            return begins, ends
        return torch.maximum(begins, token - window + 1), torch.minimum(ends, token + window)


@dataclass(frozen=True)
class Attention:
    """scale: of q kᵀ; softcap: c of c tanh(s / c), 0 for none.

    window: tokens that a query sees, its own among them, 0 for all.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> tuple[Tensor, tuple]:
        """(out (T, heads, D), what backward needs besides out)."""
        if not q.is_cuda:
            return self._reference(q, k, v, docs), ()
        if self.softcap:
            begins, _ = docs.spans(len(q), self.window)
            out, lse = ops.on(q).attend(q, k, v, begins, self.scale, self.softcap)
            return out, (lse,)
        if self._is_dense(q, docs):
            out = _aten._scaled_dot_product_cudnn_attention(
                *self._rows(docs, q, k, v), None, True, 0.0, True, False, scale=self.scale
            )
            return out[0].transpose(1, 2).flatten(0, 1), tuple(out[1:8])
        n = docs.longest
        out, lse, state, unused, _ = _aten._flash_attention_forward(
            q, k, v, docs.starts, docs.starts, n, n, 0.0, True, False, **self._flash(docs)
        )
        return out, (lse, state, unused)

    def backward(self, dout: Tensor, q, k, v, out: Tensor, saved: tuple, docs: Documents):
        """dq, dk, dv, each (T, heads, D). saved: the second result of `forward`."""
        if not q.is_cuda:
            return self._reference_backward(dout, q, k, v, docs)
        if self.softcap:
            spans = docs.spans(len(q), self.window)
            return ops.on(q).attend_backward(
                dout, q, k, v, out, *saved, *spans, self.scale, self.softcap
            )
        if self._is_dense(q, docs):
            lse, start_q, start_k, max_q, max_k, seed, offset = saved
            rows = self._rows(docs, dout, q, k, v, out)
            grads = _aten._scaled_dot_product_cudnn_attention_backward(
                *rows, lse, seed, offset, None, start_q, start_k, max_q, max_k, 0.0, True, scale=self.scale
            )  # fmt: skip
            return tuple(g.transpose(1, 2).flatten(0, 1) for g in grads)
        lse, state, unused = saved
        n, starts = docs.longest, docs.starts
        return _aten._flash_attention_backward(
            dout, q, k, v, out, lse, starts, starts, n, n, 0.0, True, state, unused, **self._flash(docs)
        )  # fmt: skip

    def _is_dense(self, q: Tensor, docs: Documents) -> bool:
        """cuDNN on Hopper is 1.7 times as fast as torch's FlashAttention 2, for whole rows only."""
        is_hopper = torch.cuda.get_device_capability(q.device)[0] == 9
        is_full = not 0 < self.window < docs.longest
        return is_hopper and is_full and docs.uniform > 0 and q.shape[-1] <= 128

    def _flash(self, docs: Documents) -> dict:
        if not 0 < self.window < docs.longest:
            return {"scale": self.scale}
        return {"scale": self.scale, "window_size_left": self.window - 1, "window_size_right": 0}

    @staticmethod
    def _rows(docs: Documents, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(T, heads, D) to (documents, heads, length, D)."""
        return tuple(t.unflatten(0, (-1, docs.uniform)).transpose(1, 2) for t in tensors)

    def _reference(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        parts = [t.split(docs.lengths) for t in (q, k, v)]
        return torch.cat([self._document(*p) for p in zip(*parts, strict=True)])

    def _document(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = (q @ k.transpose(1, 2)).to(torch.promote_types(q.dtype, torch.float32))
        scores = scores * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        i = torch.arange(q.shape[1], device=q.device)
        back = i[:, None] - i[None, :]
        hidden = (back < 0) | ((back >= self.window) if self.window else False)
        shares = F.softmax(scores.masked_fill(hidden, float("-inf")), -1)
        return (shares.to(q.dtype) @ v).transpose(0, 1)

    def _reference_backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, docs: Documents):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            return torch.autograd.grad(self._reference(*leaves, docs), leaves, dout)  # type: ignore
