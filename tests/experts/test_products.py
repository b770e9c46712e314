"""Products of grouped rows: as exact as bf16 allows, whatever the routing, however many experts at a time."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qlora_space.experts import products
from qlora_space.experts.module import PackedExperts
from qlora_space.experts.products import Adapter
from qlora_space.experts.routing import _tiles, route
from tests.experts.reference import matrices

Checkpoint = Callable[[str], Path]
E, H, WIDTH, R, K, TOKENS = 8, 128, 64, 4, 2, 96


class _Original(nn.Module):
    """As transformers' experts interface leaves it: two parameters, flags, and how a gate is applied."""

    def __init__(self, *, has_bias: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_experts, self.is_transposed = E, False
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * WIDTH, H, generator=generator) / 8)
        self.down_proj = nn.Parameter(torch.randn(E, H, WIDTH, generator=generator) / 8)
        if has_bias:
            self.gate_up_proj_bias = nn.Parameter(torch.randn(E, 2 * WIDTH, generator=generator))
            self.down_proj_bias = nn.Parameter(torch.randn(E, H, generator=generator))

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up


def packed(*, has_bias: bool = False) -> PackedExperts:
    original = _Original(has_bias=has_bias)
    weights = original.gate_up_proj.data, original.down_proj.data
    experts = PackedExperts(original).requires_grad_(False)
    for name, weight in zip(experts.names, weights, strict=True):
        experts.pack(name, weight)
    experts.show(None)
    return experts


def inputs(dtype: torch.dtype, choices: int = E) -> SimpleNamespace:
    """The same numbers, which bf16 holds, in any dtype; `choices`: experts that are chosen at all."""
    generator = torch.Generator().manual_seed(1)

    def number(*size: int, by: float = 1.0) -> torch.Tensor:
        value = torch.randn(*size, generator=generator) * by
        return value.bfloat16().to(dtype).requires_grad_()

    index = torch.rand(TOKENS, choices, generator=generator).argsort(-1)[:, :K] + (E - choices)
    return SimpleNamespace(
        x=number(TOKENS, H),
        weights=torch.rand(TOKENS, K, generator=generator).bfloat16().to(dtype).requires_grad_(),
        index=index,
        adapters=[
            number(E * R, H),
            number(2 * WIDTH, R * E),
            number(E * R, WIDTH),
            number(H, R * E),
        ],
        dout=torch.randn(TOKENS, H, generator=generator).bfloat16().to(dtype),
    )


def results(run: Callable[..., torch.Tensor], given: SimpleNamespace) -> dict[str, torch.Tensor]:
    """Output and all gradients, in fp64."""
    leaves = [given.x, given.weights, *given.adapters]
    out = run(given)
    grads = torch.autograd.grad(out, leaves, given.dout)
    names = ("dx", "dweights", "dA up", "dB up", "dA down", "dB down")
    return {
        "out": out.detach().double(),
        **{n: g.double() for n, g in zip(names, grads, strict=True)},
    }


def run_packed(experts: PackedExperts) -> Callable[..., torch.Tensor]:
    def run(given: SimpleNamespace) -> torch.Tensor:
        a_up, b_up, a_down, b_down = given.adapters
        pair = (Adapter(a_up, b_up, 0.5, E), Adapter(a_down, b_down, 0.5, E))
        return experts(given.x, given.index, given.weights, adapters=pair)

    return run


def run_dense(experts: PackedExperts) -> Callable[..., torch.Tensor]:
    """Expert by expert with autograd, all in the dtype of x: what transformers and peft compute."""

    def run(given: SimpleNamespace) -> torch.Tensor:
        dtype = given.x.dtype
        up, down = (matrices(experts, name, dtype) for name in experts.names)
        a_up, b_up, a_down, b_down = given.adapters
        out = torch.zeros_like(given.x)
        biases: Any = [getattr(experts, f"{name}_bias") for name in experts.names]
        biases = [None if b is None else b.to(dtype) for b in biases]
        for e in range(E):
            delta_up = b_up.view(-1, R, E)[..., e] @ a_up.view(E, R, -1)[e] * 0.5
            delta_down = b_down.view(-1, R, E)[..., e] @ a_down.view(E, R, -1)[e] * 0.5
            token, slot = torch.where(given.index == e)
            gate_up = F.linear(
                given.x[token], up[e] + delta_up, biases[0] if biases[0] is None else biases[0][e]
            )
            gate, value = gate_up.chunk(2, -1)
            y = F.linear(
                F.silu(gate) * value,
                down[e] + delta_down,
                biases[1] if biases[1] is None else biases[1][e],
            )
            out = out.index_add(0, token, y * given.weights[token, slot, None])
        return out

    return run


@pytest.fixture(params=["all at once", "a few at a time"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a few at a time":
        monkeypatch.setattr(products, "ROW_BYTES_AT_ONCE", 2**18)
        monkeypatch.setattr(products, "WEIGHT_BYTES_AT_ONCE", 2**16)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("choices", "has_bias"), [(E, False), (3, False), (E, True)])
def test_in_fp64_output_and_gradients_are_those_of_autograd(choices: int, has_bias: bool) -> None:
    experts = packed(has_bias=has_bias)
    got = results(run_packed(experts), inputs(torch.float64, choices))
    wanted = results(run_dense(experts), inputs(torch.float64, choices))
    for name, value in got.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.usefixtures("at_once")
def test_in_bf16_the_error_is_at_most_that_of_a_dense_bf16_computation() -> None:
    """1.2 times the error that the 16-bit experts have themselves."""
    experts = packed()
    exact = results(run_dense(experts), inputs(torch.float64))
    dense = results(run_dense(experts), inputs(torch.bfloat16))
    got = results(run_packed(experts), inputs(torch.bfloat16))
    for name, value in exact.items():
        errors = [(found[name] - value).norm() / value.norm() for found in (got, dense)]
        assert errors[0] <= 1.2 * errors[1], (name, errors)


def test_only_chosen_experts_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = packed()
    unpacked: list[int] = []
    stack: Any = experts.stack("down_proj")
    matrix = stack._matrix
    monkeypatch.setattr(stack, "_matrix", lambda e: unpacked.append(e) or matrix(e))
    given = inputs(torch.float32, 3)
    experts(given.x, given.index, given.weights)
    assert unpacked == [5, 6, 7]


def test_routing_sorts_rows_by_expert_and_finds_them_again() -> None:
    routing = route(torch.tensor([[2, 0], [2, 3], [0, 2]]), 5, torch.float32)
    assert routing.counts == (2, 0, 3, 1, 0)
    assert routing.bounds.tolist() == [0, 2, 2, 5, 6, 6]
    assert routing.experts.tolist() == [0, 0, 2, 2, 2, 3]
    assert routing.tokens.tolist() == [0, 2, 0, 1, 2, 1]
    assert routing.places.tolist() == [[2, 0], [3, 5], [1, 4]]


def test_tiles_cover_every_row_once() -> None:
    index = torch.cat([torch.zeros(130, dtype=torch.long), torch.full((3,), 2)])[:, None]
    experts, firsts = _tiles(route(index, 4, torch.float32).bounds, len(index))
    tiles = list(zip(experts.tolist(), firsts.tolist(), strict=True))
    assert [t for t in tiles if t[0] < 4] == [(0, 0), (0, 64), (0, 128), (2, 130)]
    assert len(tiles) == 3 + 4  # as many as any choice may need


def test_what_is_at_work_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = packed().experts
    assert experts.parts(4) == 1
    of_token = K * (H + 4 * WIDTH) * 4
    monkeypatch.setattr(products, "ROW_BYTES_AT_ONCE", 40 * of_token)
    assert experts.tokens_at_once(K, 4) == 32
    monkeypatch.setattr(products, "WEIGHT_BYTES_AT_ONCE", E * 2 * WIDTH * H * 4 // 3)
    assert experts.parts(4) == 4
