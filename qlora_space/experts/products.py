"""Forward and backward of the experts of a layer, with nothing kept in between but the inputs.

S rows sorted by expert (routing.py), H hidden, I intermediate, R rank. The frozen matrices W are unpacked for one group
of experts at a time, once in forward and once in backward. The gradient of a router's weight is that of a row's output
times the output, which is the gradient of the activation times the activation: so `down` is never computed again.
LoRA (arXiv 2106.09685) adds B A to each matrix.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from qlora_space.experts import formulas
from qlora_space.experts.gate import Gate
from qlora_space.experts.routing import Routing
from qlora_space.experts.stacks import Stack

Tensor = torch.Tensor
_SMALLEST_RANK = 16  # of the copies that are multiplied: what tensor cores and alignment want
# At work at once: unpacked weights of the first product, and all that is there for rows. They decide a step's peak.
WEIGHT_BYTES_AT_ONCE = ROW_BYTES_AT_ONCE = 2**29


@dataclass(frozen=True)
class Adapter:
    """One of peft's adapters on a stack (E, N, K), as peft stores it: a (E r, K), b (N, r E); scale multiplies B A."""

    a: Tensor
    b: Tensor
    scale: float
    num_experts: int

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.num_experts

    def gradients(self, a: Tensor, b: Tensor) -> "Gradients":
        """Where its gradients are to be added."""
        return Gradients(a, b)

    def copies(self, dtype: torch.dtype) -> "Copies":
        """A and s B in the compute dtype, expert by expert, padded with zeros to a rank that kernels take."""
        r = self.rank
        padded = max(_SMALLEST_RANK, 1 << (r - 1).bit_length()) if self.a.is_cuda else r
        a = self.a.detach().view(self.num_experts, r, -1)
        if padded != r:
            a = torch.nn.functional.pad(a, (0, 0, 0, padded - r))
        b = _on(self.b).stacked_b(self.b.detach(), self.num_experts, r, padded, self.scale, dtype)
        return Copies(a.to(dtype), b)


@dataclass(frozen=True)
class Copies:
    """a: (E, R, K); b: (E, N, R), with the scale in it."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Gradients:
    """Where gradients of an Adapter are added: a (E r, K), b (N, r E), fp32 or wider."""

    a: Tensor
    b: Tensor

    def add(self, routing: Routing, adapter: Adapter, da: Tensor, db: Tensor) -> None:
        """da: (E, R, K); db: (E, N, R), without the scale."""
        a = self.a.view(adapter.num_experts, adapter.rank, -1)
        b = self.b.view(-1, adapter.rank, adapter.num_experts)
        _on(da).add_gradients(da, db, routing, a, b, adapter.scale)


@dataclass(frozen=True)
class Experts:
    """The frozen part. Biases are (E, 2 I) and (E, H), or None."""

    up: Stack
    down: Stack
    up_bias: Tensor | None
    down_bias: Tensor | None
    gate: Gate

    def parts(self, element_size: int) -> int:
        """Into how many the first product is cut, so that what is unpacked of it is not too large."""
        bytes_in_all = math.prod(self.up.shape) * element_size
        wanted = -(-bytes_in_all // WEIGHT_BYTES_AT_ONCE)
        rows = self.up.shape[1]
        return next((n for n in (1, 2, 4, 8) if n >= wanted and rows % (8 * n) == 0), 1)

    def tokens_at_once(self, k: int, element_size: int) -> int:
        """A power of two, so that what is there for their rows in backward is not too large."""
        (_, inner, hidden), (_, _, width) = self.up.shape, self.down.shape
        of_token = k * (hidden + inner + 2 * width) * element_size
        return 1 << max(0, (ROW_BYTES_AT_ONCE // of_token).bit_length() - 1)


Adapters = tuple[Adapter | None, Adapter | None]  # of the first product and of `down`


@torch.no_grad()
def forward(
    experts: Experts, adapters: Adapters, x: Tensor, weights: Tensor, routings: Sequence[Routing]
) -> Tensor:
    """(T, H) of x (T, H): the sum of the chosen experts' outputs by the router's weights (T, k). routings: of tiles."""
    op = _on(x)
    up, down = (a and a.copies(x.dtype) for a in adapters)
    out = []
    for x_tile, w_tile, routing in _tiles(routings, x, weights):
        rows = x_tile.index_select(0, routing.tokens)
        inner = _first_product(experts, up, rows, routing)[0]
        rows = experts.gate.forward(inner, op)
        del inner
        weight = experts.down.matrices(routing, x.dtype)
        y = grouped(rows, weight.transpose(1, 2), routing)
        del weight
        if experts.down_bias is not None:
            y += _bias_rows(experts.down_bias, routing, y.dtype)
        if down is not None:
            op.expand(grouped(rows, down.a.transpose(1, 2), routing), down.b, routing, y, y)
        out.append(op.combine(y, routing.places, w_tile))
        del y, rows
    return out[0] if len(out) == 1 else torch.cat(out)


@torch.no_grad()
def backward(
    experts: Experts,
    adapters: Adapters,
    gradients: tuple[Gradients | None, Gradients | None],
    dout: Tensor,
    x: Tensor,
    weights: Tensor,
    routings: Sequence[Routing],
) -> tuple[Tensor, Tensor]:
    """(gradient of x, gradient of the router's weights (T, k)); those of the adapters are added to `gradients`."""
    up, down = (a and a.copies(x.dtype) for a in adapters)
    found = []
    for x_tile, d_tile, w_tile, routing in _tiles(routings, x, dout, weights):
        step = _Backward(experts, routing, up, down, adapters, gradients, _on(x))
        found.append(step(x_tile, d_tile, w_tile))
    dx, d_weights = zip(*found, strict=True)
    return (dx[0], d_weights[0]) if len(found) == 1 else (torch.cat(dx), torch.cat(d_weights))


def _tiles(routings: Sequence[Routing], *tensors: Tensor) -> Iterator[Any]:
    """(piece of each tensor, routing) for each tile of tokens."""
    sizes = [len(r.places) for r in routings]
    return zip(*(t.split(sizes) for t in tensors), routings, strict=True)


@dataclass(frozen=True)
class _Backward:
    """One tile of tokens. up, down: copies of the adapters."""

    experts: Experts
    routing: Routing
    up: Copies | None
    down: Copies | None
    adapters: Adapters
    gradients: tuple[Gradients | None, Gradients | None]
    op: ModuleType

    def __call__(self, x: Tensor, dout: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(gradient of x, gradient of weights)."""
        experts, routing = self.experts, self.routing
        d, g, share_of_bias = self._of_activation(dout)
        xs = x.index_select(0, routing.tokens)
        inner, h = _first_product(experts, self.up, xs, routing)
        by_row = weights.reshape(-1).index_select(0, routing.order)
        acted, share, d_inner = experts.gate.backward(inner, d, by_row, self.op)
        del inner, d
        share = share if share_of_bias is None else share + share_of_bias
        self._add_down_gradients(acted, dout, g)
        del acted
        d_up = self._add_up_gradients(d_inner, h, xs)
        del xs, h
        dx = self.op.combine(self._of_input(d_inner, d_up), routing.places, None)
        d_weights = share.index_select(0, routing.places.reshape(-1)).view_as(weights)
        return dx, d_weights.to(weights.dtype)

    def _of_activation(self, dout: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(gradient of the activations (S, I) but for the router's weights, that of the output times s B of `down`,
        the bias's part of the gradient of the router's weights)."""
        dys, bias = dout.index_select(0, self.routing.tokens), self.experts.down_bias
        d = grouped(dys, self.experts.down.matrices(self.routing, dys.dtype), self.routing)
        share = None
        if bias is not None:
            share = (dys * _bias_rows(bias, self.routing, dys.dtype)).sum(-1)
        if self.down is None:
            return d, None, share
        g = grouped(dys, self.down.b, self.routing)
        self.op.expand(g, self.down.a.transpose(1, 2), self.routing, d, d)
        return d, g, share

    def _add_down_gradients(self, acted: Tensor, dout: Tensor, g: Tensor | None) -> None:
        """acted: activations times the router's weights."""
        adapter, gradients, routing = self.adapters[1], self.gradients[1], self.routing
        if self.down is None or adapter is None or gradients is None or g is None:
            return
        h = grouped(acted, self.down.a.transpose(1, 2), routing)
        da = grouped_outer(g, acted, routing)
        dys = dout.index_select(0, routing.tokens)
        gradients.add(routing, adapter, da, grouped_outer(dys, h, routing))

    def _add_up_gradients(self, d_inner: Tensor, h: Tensor | None, xs: Tensor) -> Tensor | None:
        """d_inner times s B."""
        adapter, gradients, routing = self.adapters[0], self.gradients[0], self.routing
        if self.up is None or adapter is None or gradients is None or h is None:
            return None
        g = grouped(d_inner, self.up.b, routing)
        da, db = grouped_outer(g, xs, routing), grouped_outer(d_inner, h, routing)
        gradients.add(routing, adapter, da, db)
        return g

    def _of_input(self, d_inner: Tensor, g: Tensor | None) -> Tensor:
        """The gradient of each row of x."""
        stack, routing, dxs = self.experts.up, self.routing, None
        parts = self.experts.parts(d_inner.element_size())
        for part, piece in enumerate(d_inner.chunk(parts, 1)):
            product = grouped(piece, stack.matrices(routing, piece.dtype, part, parts), routing)
            dxs = product if dxs is None else dxs.add_(product)
            del product
        assert dxs is not None
        if g is not None and self.up is not None:
            self.op.expand(g, self.up.a.transpose(1, 2), routing, dxs, dxs)
        return dxs


def _first_product(
    experts: Experts, copies: Copies | None, x: Tensor, routing: Routing
) -> tuple[Tensor, Tensor | None]:
    """(x (W + s B A)ᵀ + bias (S, N), x Aᵀ), a part of W after the other."""
    rows, parts = experts.up.shape[1], experts.parts(x.element_size())
    y = x.new_empty(len(x), rows)
    h = None if copies is None else grouped(x, copies.a.transpose(1, 2), routing)
    for part, to in enumerate(y.chunk(parts, 1)):
        weight = experts.up.matrices(routing, x.dtype, part, parts)
        product = grouped(x, weight.transpose(1, 2), routing)
        del weight
        if copies is None or h is None:
            to.copy_(product)
        else:
            _on(x).expand(h, copies.b.chunk(parts, 1)[part], routing, product, to)
        del product
    if experts.up_bias is not None:
        y += _bias_rows(experts.up_bias, routing, y.dtype)
    return y, h


def _bias_rows(bias: Tensor, routing: Routing, dtype: torch.dtype) -> Tensor:
    """(S, N): of each row's expert."""
    return bias.to(dtype).index_select(0, routing.experts.int())


def grouped(x: Tensor, matrices: Tensor, routing: Routing) -> Tensor:
    """(S, N): rows (S, K) times the matrix (E, K, N) of their expert."""
    if not routing.counts:
        return torch._grouped_mm(x, matrices, offs=routing.ends)
    out = x.new_empty(x.shape[0], matrices.shape[2])
    counts = routing.counts
    for count, rows, to, matrix in zip(
        counts, x.split(counts), out.split(counts), matrices, strict=True
    ):
        if count:
            torch.mm(rows, matrix, out=to)
    return out


def grouped_outer(a: Tensor, b: Tensor, routing: Routing) -> Tensor:
    """(E, M, N): for each expert the product of its rows of a (S, M), transposed, and of b (S, N)."""
    if not routing.counts:
        return torch._grouped_mm(a.t(), b, offs=routing.ends)
    wide = torch.promote_types(a.dtype, torch.float32)
    pairs = zip(a.split(routing.counts), b.split(routing.counts), strict=True)
    return torch.stack([rows.t().to(wide) @ others.to(wide) for rows, others in pairs])


def _on(x: Tensor) -> ModuleType:
    """kernels or formulas, whichever takes x."""
    if not x.is_cuda:
        return formulas
    from qlora_space.experts import kernels

    return kernels
