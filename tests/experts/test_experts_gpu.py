"""On a GPU: kernels against plain torch, a layer's products against float64, loading by size, the fast step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from qlora_space.experts import expert_targets, formulas, packed_experts, products
from qlora_space.experts.products import grouped, grouped_outer
from qlora_space.experts.routing import route
from qlora_space.experts.stacks import Nf4Stack
from qlora_space.fast import ActivationPolicy
from qlora_space.fast.model import build, differences
from qlora_space.model import load_base
from tests.experts import test_products as cases
from tests.experts.test_adapter import adapted

pytestmark = pytest.mark.gpu
Checkpoint = Callable[[str], Path]


@pytest.fixture
def routing() -> Any:
    """Of 40 experts, one of which has no rows, the others as many as fill no tile."""
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(500, 40, generator=generator)
    index[:, 17] = -1
    routing = route(index.topk(4).indices.cuda(), 40, torch.bfloat16)
    assert not routing.counts  # nothing waits
    return routing


def counts_of(routing: Any) -> list[int]:
    counts = routing.bounds.diff().tolist()
    assert counts[17] == 0
    return counts


def random(*size: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(size))
    return torch.randn(*size, device="cuda", generator=generator).bfloat16()


def test_dequantized_matrices_are_those_of_bitsandbytes(routing: Any) -> None:
    weight = random(40, 96, 128)
    codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    wanted, stack = dequantize_4bit(codes, state), Nf4Stack.from_weight(weight)
    hit = [count > 0 for count in counts_of(routing)]
    assert torch.equal(stack.matrices(routing, torch.bfloat16)[hit], wanted[hit])
    halves = [stack.matrices(routing, torch.bfloat16, part, 2) for part in range(2)]
    assert torch.equal(torch.cat(halves, 1)[hit], wanted[hit])


def test_kernels_compute_what_plain_torch_does(routing: Any) -> None:
    from qlora_space.experts import kernels

    known = replace(routing, counts=tuple(counts_of(routing)))
    rows = len(routing.tokens)
    h, b, source = random(rows, 16), random(40, 200, 16), random(rows, 200)
    got, wanted = torch.empty_like(source), torch.empty_like(source)
    kernels.expand(h, b, routing, source, got)
    formulas.expand(h, b, known, source, wanted)
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=5e-2)
    da, db = random(40, 16, 128), random(40, 96, 16)
    a, b = random(40, 3, 128).float(), random(96, 3, 40).float()
    wanted_a, wanted_b = a.clone(), b.clone()
    kernels.add_gradients(da, db, routing, a, b, 0.5)
    formulas.add_gradients(da, db, known, wanted_a, wanted_b, 0.5)
    torch.testing.assert_close(a, wanted_a)
    torch.testing.assert_close(b, wanted_b)
    b = random(200, 3 * 40).float()
    torch.testing.assert_close(
        kernels.stacked_b(b, 40, 3, 16, 0.5, torch.bfloat16),
        formulas.stacked_b(b, 40, 3, 16, 0.5, torch.bfloat16),
    )


def test_grouped_products_are_those_of_each_expert(routing: Any) -> None:
    known = replace(routing, counts=tuple(counts_of(routing)))
    rows = len(routing.tokens)
    x, w, g = random(rows, 128), random(40, 96, 128), random(rows, 16)
    got, wanted = (grouped(x, w.transpose(1, 2), r) for r in (routing, known))
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=5e-2)
    piece = random(rows, 192)[:, 96:]  # of longer rows
    got, wanted = (grouped(piece, w, r) for r in (routing, known))
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=5e-2)
    hit = [count > 0 for count in known.counts]
    got, wanted = (grouped_outer(g, x, r)[hit].float() for r in (routing, known))
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=1e-1)


def test_a_layer_can_be_captured() -> None:
    """Forward and backward of a routing that was not known when the graph was made."""
    experts = cases.packed().cuda()
    first, second = (on_gpu(cases.inputs(torch.bfloat16, c)) for c in (cases.E, 3))
    run = cases.run_packed(experts)
    wanted = cases.results(run, second)
    cases.results(run, first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = cases.results(run, first)
    with torch.no_grad():
        for name in ("x", "weights", "index", "dout"):
            getattr(first, name).copy_(getattr(second, name))
        for mine, other in zip(first.adapters, second.adapters, strict=True):
            mine.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], value, msg=name)


@pytest.mark.parametrize("at_once", [2**29, 2**16])
def test_a_layer_in_bf16_is_as_exact_as_a_dense_one(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, and gradients of the input, the router's weights and both adapters: 1.2 times the error of bf16."""
    monkeypatch.setattr(products, "ROW_BYTES_AT_ONCE", at_once)
    monkeypatch.setattr(products, "WEIGHT_BYTES_AT_ONCE", at_once)
    experts = cases.packed()
    exact = cases.results(cases.run_dense(experts), cases.inputs(torch.float64))
    dense = cases.results(cases.run_dense(experts.cuda()), on_gpu(cases.inputs(torch.bfloat16)))
    got = cases.results(cases.run_packed(experts), on_gpu(cases.inputs(torch.bfloat16)))
    errors = {}
    for name, value in exact.items():
        pair = [float((found[name].cpu() - value).norm() / value.norm()) for found in (got, dense)]
        errors[name] = pair
    assert all(mine <= 1.2 * other for mine, other in errors.values()), errors


def on_gpu(given: Any) -> Any:
    move = lambda t: t.detach().cuda().requires_grad_(t.requires_grad)  # noqa: E731
    given.x, given.weights = move(given.x), move(given.weights)
    given.index, given.dout = given.index.cuda(), given.dout.cuda()
    given.adapters = [move(a) for a in given.adapters]
    return given


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3", "olmoe"])
def test_a_base_loads_packed_and_its_step_gives_gradients(
    family: str, checkpoint: Checkpoint
) -> None:
    base = load_base(checkpoint(family), 4, "cuda")
    assert all(e.packed_bytes for _, e in packed_experts(base))
    model = adapted(base, expert_targets(base)).cuda()
    ids = torch.randint(300, (2, 64), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, output_router_logits=False).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
    assert any(g is not None and g.any() for n, g in grads.items() if "experts" in n)


@pytest.mark.parametrize(
    "policy", [ActivationPolicy.OFFLOAD, ActivationPolicy.LAYER, ActivationPolicy.QKV]
)
@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral"])
def test_the_fast_step_has_the_gradients_of_the_plain_one(
    family: str, policy: ActivationPolicy, checkpoint: Checkpoint
) -> None:
    base = load_base(checkpoint(family), 4, "cuda")
    model = adapted(base, expert_targets(base))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.cuda()
    loss, gradient = differences(model, build(model, policy))
    assert loss < 0.01
    assert gradient < 0.1, gradient
