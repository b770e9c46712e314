"""Run by test_interpreted.py with TRITON_INTERPRET=1: every kernel on CPU tensors, compared with plain torch."""

import sys
import types
from dataclasses import replace
from typing import Any

import torch
from triton.runtime import interpreter  # type: ignore

from qlora_space.experts import formulas, kernels, module, products
from qlora_space.experts.gate import Gate
from qlora_space.experts.routing import _tiles, route
from qlora_space.experts.stacks import Mxfp4Stack, Nf4Stack
from tests.experts import test_products as cases

_known = interpreter._patch_lang_tensor


def _with_bounds_of_loops(tensor: Any, scope: Any) -> None:
    """numpy 2.4 no longer makes a number of an array of one."""
    _known(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _with_bounds_of_loops
INDEX = torch.tensor([[2, 0], [2, 3], [0, 2], [5, 2]])
ROUTING = replace(
    route(INDEX, 6, torch.float32), tiles=_tiles(route(INDEX, 6, torch.float32).bounds, 8)
)


def check_parts(dequantize: Any, stack: Any) -> None:
    hit = [bool(count) for count in ROUTING.counts]
    assert not all(hit)  # others are not unpacked
    for parts in (1, 2):
        for part in range(parts):
            wanted = stack.matrices(ROUTING, torch.float32, part, parts)
            out = torch.empty_like(wanted)
            dequantize(stack, ROUTING, part, out)
            assert torch.equal(out[hit], wanted[hit])


def dequantization() -> None:
    check_parts(kernels.dequantize_nf4, Nf4Stack.from_weight(torch.randn(6, 24, 192)))


def dequantization_of_mxfp4() -> None:
    codes = torch.randint(256, (6, 24, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (6, 24, 4), dtype=torch.uint8)
    check_parts(kernels.dequantize_mxfp4, Mxfp4Stack(codes, scales))


def expansion() -> None:
    rows = len(INDEX) * 2
    for rank, width in ((16, 136), (3, 40)):
        h, b = torch.randn(rows, rank), torch.randn(6, width, rank)
        source = torch.randn(rows, width)
        for matrix in (b, b.mT.contiguous().mT):
            wide, wanted = torch.zeros(rows, 2 * width), torch.empty_like(source)
            kernels.expand(h, matrix, ROUTING, source, wide[:, width:])
            formulas.expand(h, matrix, ROUTING, source, wanted)
            torch.testing.assert_close(wide[:, width:], wanted, rtol=1e-3, atol=1e-3)
            assert not wide[:, :width].any()


def combination() -> None:
    rows = torch.randn(8, 40)
    for weights in (torch.rand(4, 2), None):
        got = kernels.combine(rows, ROUTING.places, weights)
        torch.testing.assert_close(got, formulas.combine(rows, ROUTING.places, weights))


def gradients() -> None:
    """What is said of experts without rows does not count."""
    experts, rank, padded, columns, outputs = 6, 3, 16, 300, 40
    da, db = torch.randn(experts, padded, columns), torch.randn(experts, outputs, padded)
    a, b = torch.randn(experts, rank, columns), torch.randn(outputs, rank, experts)
    wanted_a, wanted_b = a.clone(), b.clone()
    kernels.add_gradients(da, db, ROUTING, a, b, 0.5)
    formulas.add_gradients(da, db, ROUTING, wanted_a, wanted_b, 0.5)
    torch.testing.assert_close(a, wanted_a)
    torch.testing.assert_close(b, wanted_b)


def stacking() -> None:
    b = torch.randn(40, 3 * 6)
    got = kernels.stacked_b(b, 6, 3, 16, 0.5, torch.float32)
    torch.testing.assert_close(got, formulas.stacked_b(b, 6, 3, 16, 0.5, torch.float32))


def gates() -> None:
    class Original(torch.nn.Module):
        def __init__(self, act: Any) -> None:
            super().__init__()
            self.act = act

        def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
            gate, up = gate_up.chunk(2, -1)
            return self.act(gate) * up

    tanh = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731
    for act, kind in ((torch.nn.functional.silu, "silu"), (tanh, "gelu")):
        gate = Gate(Original(act), 40)
        assert gate.kind == kind
        inner, d, weight = torch.randn(8, 80), torch.randn(8, 40), torch.rand(8)
        torch.testing.assert_close(
            kernels.gated(inner, is_gelu=kind == "gelu"), gate.forward(inner, formulas)
        )
        wanted = gate.backward(inner, d, weight, formulas)
        acted, share = kernels.gated_backward(inner, d, weight, is_gelu=kind == "gelu")
        for got, value in zip((acted, share, inner), wanted, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5)


def with_tiles(routing: Any) -> Any:
    return replace(routing, tiles=_tiles(routing.bounds, len(routing.tokens)))


def whole_layer() -> None:
    names = ("expand", "gated", "combine", "add_gradients", "stacked_b")
    products._on = lambda x: types.SimpleNamespace(**{n: getattr(kernels, n) for n in names})
    module.route = lambda *args: with_tiles(route(*args))
    experts = cases.packed()
    got = cases.results(cases.run_packed(experts), cases.inputs(torch.float32))
    wanted = cases.results(cases.run_dense(experts), cases.inputs(torch.float32))
    for name, value in got.items():
        torch.testing.assert_close(value, wanted[name], rtol=2e-3, atol=2e-3, msg=name)


if __name__ == "__main__":
    pieces = (dequantization, dequantization_of_mxfp4, expansion, combination, gradients)
    for check in (*pieces, stacking, gates, whole_layer):
        check()
        sys.stdout.write(f"{check.__name__}\n")
