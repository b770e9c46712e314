"""Forward and backward of the experts of a layer, group by group, with nothing kept in between but the inputs.

S rows sorted by expert (routing.py), H hidden, I intermediate, R rank. The frozen matrices W are unpacked for one group
of experts at a time, once in forward and once in backward. The gradient of a router's weight is that of a row's output
times the output, which is the gradient of the activation times the activation: so `down` is never computed again.
LoRA (arXiv 2106.09685) adds B A to each matrix.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from qlora_space.experts import formulas
from qlora_space.experts.gate import Gate
from qlora_space.experts.routing import Cost, Group, Routing
from qlora_space.experts.stacks import Stack

Tensor = torch.Tensor
_SMALLEST_RANK = 16  # of the copies that are multiplied: what tensor cores and alignment want
_GROUPED_CAPABILITY = (
    9,
    0,
)  # torch's grouped products are kernels from Hopper on, and a loop before


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

    def of(self, group: Group) -> "Copies":
        """Those of a group's experts."""
        where = _selection(group)
        return Copies(self.a[where], self.b[where])


@dataclass(frozen=True)
class Gradients:
    """Where gradients of an Adapter are added: a (E r, K), b (N, r E), fp32 or wider."""

    a: Tensor
    b: Tensor

    def add(self, group: Group, adapter: Adapter, da: Tensor, db: Tensor) -> None:
        """da: (C, R, K); db: (C, N, R), without the scale."""
        a = self.a.view(adapter.num_experts, adapter.rank, -1)
        b = self.b.view(-1, adapter.rank, adapter.num_experts)
        op = _on(da) if group.is_range else formulas
        op.add_gradients(da, db, group, a, b, adapter.scale)


@dataclass(frozen=True)
class Experts:
    """The frozen part. Biases are (E, 2 I) and (E, H), or None."""

    up: Stack
    down: Stack
    up_bias: Tensor | None
    down_bias: Tensor | None
    gate: Gate

    def cost(self, element_size: int) -> Cost:
        """Of an expert: its larger matrix. Of a row: input, gradient of the output, first product, its activation and
        the gradient of that."""
        (_, inner, hidden), (_, outputs, width) = self.up.shape, self.down.shape
        row = hidden + outputs + inner + 2 * width
        return Cost(max(inner * hidden, outputs * width) * element_size, row * element_size)


Adapters = tuple[Adapter | None, Adapter | None]  # of the first product and of `down`


@torch.no_grad()
def forward(
    experts: Experts, adapters: Adapters, x: Tensor, weights: Tensor, routing: Routing
) -> Tensor:
    """(T, H) of x (T, H): the sum of the chosen experts' outputs by the router's weights (T, k)."""
    op = _on(x)
    up, down = (a and a.copies(x.dtype) for a in adapters)
    out = _zeros(x, experts.down.shape[1])
    for group in routing.groups(experts.cost(x.element_size())):
        rows = x.index_select(0, routing.tokens[group.rows])
        inner = _product(experts.up, experts.up_bias, up and up.of(group), rows, group)[0]
        rows = experts.gate.forward(inner, op)
        del inner
        rows = _product(experts.down, experts.down_bias, down and down.of(group), rows, group)[0]
        op.add_rows(rows, routing.places, weights, group, out)
    return out.to(x.dtype)


@torch.no_grad()
def backward(
    experts: Experts,
    adapters: Adapters,
    gradients: tuple[Gradients | None, Gradients | None],
    dout: Tensor,
    x: Tensor,
    weights: Tensor,
    routing: Routing,
) -> tuple[Tensor, Tensor]:
    """(gradient of x, gradient of the router's weights (T, k)); those of the adapters are added to `gradients`."""
    up, down = (a and a.copies(x.dtype) for a in adapters)
    dx = _zeros(x, x.shape[1])
    shares = torch.empty(len(routing.tokens), dtype=dx.dtype, device=x.device)
    by_row = weights.reshape(-1)[routing.order]
    for group in routing.groups(experts.cost(x.element_size())):
        tokens = routing.tokens[group.rows]
        step = _Backward(experts, group, up and up.of(group), down and down.of(group), _on(x))
        dys = dout.index_select(0, tokens)
        d, g = step.of_activation(dys)
        xs, up_weight = x.index_select(0, tokens), experts.up.matrices(group, x.dtype)
        inner, h = _product(up_weight, experts.up_bias, step.up, xs, group)
        acted, share, d_inner = experts.gate.backward(inner, d, by_row[group.rows], step.op)
        del inner, d
        step.add_share(share, dys, shares[group.rows])
        if g is not None and adapters[1] and gradients[1]:
            step.add_down_gradients(acted, dys, g, adapters[1], gradients[1])
        del acted, dys
        rows = step.of_input(d_inner, up_weight, h, xs, adapters[0], gradients[0])
        step.op.add_rows(rows, routing.places, None, group, dx)
    d_weights = shares[routing.places.reshape(-1)].view_as(weights).to(weights.dtype)
    return dx.to(x.dtype), d_weights


@dataclass(frozen=True)
class _Backward:
    """One group of experts. up, down: copies of the adapters of the group."""

    experts: Experts
    group: Group
    up: Copies | None
    down: Copies | None
    op: ModuleType

    def of_activation(self, dys: Tensor) -> tuple[Tensor, Tensor | None]:
        """(gradient of the activations (S, I) but for the router's weights, dys s B of `down`)."""
        d = grouped(dys, self.experts.down.matrices(self.group, dys.dtype), self.group)
        if self.down is None:
            return d, None
        g = grouped(dys, self.down.b, self.group)
        self.op.expand(g, self.down.a.transpose(1, 2), self.group, d, d)
        return d, g

    def add_share(self, share: Tensor, dys: Tensor, shares: Tensor) -> None:
        """Write the gradient of the router's weights to its rows."""
        shares.copy_(share)
        if (bias := self.experts.down_bias) is not None:
            shares += (dys * _bias_rows(bias, self.group, dys.dtype)).sum(-1)

    def add_down_gradients(
        self, acted: Tensor, dys: Tensor, g: Tensor, adapter: Adapter, gradients: Gradients
    ) -> None:
        """acted: activations times the router's weights."""
        assert self.down is not None
        h = grouped(acted, self.down.a.transpose(1, 2), self.group)
        da, db = grouped_outer(g, acted, self.group), grouped_outer(dys, h, self.group)
        gradients.add(self.group, adapter, da, db)

    def of_input(
        self,
        d_inner: Tensor,
        up_weight: Tensor,
        h: Tensor | None,
        xs: Tensor,
        adapter: Adapter | None,
        gradients: Gradients | None,
    ) -> Tensor:
        """The gradient of each row of x."""
        group = self.group
        dxs = grouped(d_inner, up_weight, group)
        if self.up is None or h is None:
            return dxs
        g = grouped(d_inner, self.up.b, group)
        self.op.expand(g, self.up.a.transpose(1, 2), group, dxs, dxs)
        if adapter and gradients:
            da, db = grouped_outer(g, xs, group), grouped_outer(d_inner, h, group)
            gradients.add(group, adapter, da, db)
        return dxs


def _zeros(x: Tensor, width: int) -> Tensor:
    """(T, width), in the precision in which rows are added up."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.zeros(len(x), width, dtype=wide, device=x.device)


def _product(
    stack: Stack | Tensor,
    bias: Tensor | None,
    copies: Copies | None,
    x: Tensor,
    group: Group,
) -> tuple[Tensor, Tensor | None]:
    """(x (W + s B A)ᵀ + bias (S, N), x Aᵀ)."""
    weight = stack if isinstance(stack, Tensor) else stack.matrices(group, x.dtype)
    y = grouped(x, weight.transpose(1, 2), group)
    del weight
    if bias is not None:
        y += _bias_rows(bias, group, y.dtype)
    if copies is None:
        return y, None
    h = grouped(x, copies.a.transpose(1, 2), group)
    _on(x).expand(h, copies.b, group, y, y)
    return y, h


def _bias_rows(bias: Tensor, group: Group, dtype: torch.dtype) -> Tensor:
    """(S, N): of each row's expert."""
    counts = torch.diff(group.starts).long()
    return (
        bias[group.numbers.long()]
        .to(dtype)
        .repeat_interleave(counts, 0, output_size=sum(group.counts))
    )


def grouped(x: Tensor, matrices: Tensor, group: Group) -> Tensor:
    """(S, N): rows (S, K) times the matrix (C, K, N) of their expert."""
    if _has_grouped_products(x):
        return torch._grouped_mm(x, matrices, offs=group.ends)
    out = x.new_empty(x.shape[0], matrices.shape[2])
    for rows, to, matrix in zip(
        x.split(group.counts), out.split(group.counts), matrices, strict=True
    ):
        torch.mm(rows, matrix, out=to)
    return out


def grouped_outer(a: Tensor, b: Tensor, group: Group) -> Tensor:
    """(C, M, N): for each expert the product of its rows of a (S, M), transposed, and of b (S, N)."""
    if _has_grouped_products(a):
        return torch._grouped_mm(a.t(), b, offs=group.ends)
    wide = torch.promote_types(a.dtype, torch.float32)
    pairs = zip(a.split(group.counts), b.split(group.counts), strict=True)
    return torch.stack([rows.t().to(wide) @ others.to(wide) for rows, others in pairs])


def _has_grouped_products(x: Tensor) -> bool:
    if not x.is_cuda or x.dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(x.device) >= _GROUPED_CAPABILITY


def _selection(group: Group) -> Any:
    """A group's experts as an index: a slice where none is left out, so that nothing is copied."""
    if group.is_range:
        return slice(group.experts[0], group.experts[-1] + 1)
    return group.numbers.long()


def _on(x: Tensor) -> ModuleType:
    """kernels or formulas, whichever takes x."""
    if not x.is_cuda:
        return formulas
    from qlora_space.experts import kernels

    return kernels
