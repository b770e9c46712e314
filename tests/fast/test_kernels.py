"""Every kernel against its formula in float64, on fresh random numbers; dequantization bit for bit."""

import pytest
import torch

from qlora_space.fast import formulas
from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.fp8 import Fp8Weight, fp8_scale

pytestmark = pytest.mark.gpu
BOUND = 4e-3  # bf16 rounds by at most 2 ** -9 of a value


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def draw(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*size, device="cuda", dtype=dtype)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("size", [(1024, 4096), (96, 192), (4096, 12288)])
def test_dequantization_is_that_of_bitsandbytes_bit_for_bit(size, nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    from qlora_space.fast.ops import dequantize

    weight = Params4bit(torch.randn(*size), compress_statistics=nested, quant_type="nf4").cuda()
    weight.quant_state.dtype = torch.bfloat16
    wide = torch.full((size[0], size[1] + 32), 7.0, device="cuda", dtype=torch.bfloat16)
    linear = Linear4bit(1, 1)
    linear.weight = weight
    dequantize(linear, wide[:, : size[1]])
    assert torch.equal(wide[:, : size[1]], dequantize_4bit(weight.data, weight.quant_state))
    assert (wide[:, size[1] :] == 7).all()


@pytest.mark.parametrize("width", [4096, 5120, 960])
def test_norms(width: int) -> None:
    from qlora_space.fast import kernels

    x, y, d, r = (draw(65, width) for _ in range(4))
    w = draw(width, dtype=torch.float32)
    total, out = kernels.rms_norm(x, w, 1e-6, added=y)
    assert torch.equal(total, x + y)
    assert off(out, formulas.rms_norm(total.double(), w.double(), 1e-6)[1]) < BOUND
    got = kernels.rms_norm_backward(d, x, w, 1e-6, residual=r)
    wanted = formulas.rms_norm_backward(d.double(), x.double(), w.double(), 1e-6, r.double())
    assert off(got, wanted) < BOUND


@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize(
    ("heads", "dim", "half"), [((32, 8), 128, 64), ((14, 2), 64, 32), ((8, 8), 96, 36)]
)
def test_rotation(heads, dim: int, half: int, with_norm: bool) -> None:
    from qlora_space.fast import kernels

    if with_norm and 2 * half < dim:
        pytest.skip("no model norms heads that it turns in part")
    queries, keys = heads
    qkv = draw(33, (queries + 2 * keys) * dim)
    angle = draw(33, half, dtype=torch.float32)
    cos, sin = angle.cos(), angle.sin()
    norms = tuple(draw(dim, dtype=torch.float32) for _ in "qk") if with_norm else None
    wide = tuple(n.double() for n in norms) if norms else None
    got = kernels.rotate(qkv, heads, norms, cos, sin, 1e-6)
    assert off(got, formulas.rotate(qkv.double(), heads, wide, cos, sin, 1e-6)) < BOUND
    grads = tuple(draw(33, n, dim) for n in (queries, keys, keys))
    got = kernels.rotate(qkv, heads, norms, cos, sin, 1e-6, grads)
    wanted = formulas.rotate(
        qkv.double(), heads, wide, cos, sin, 1e-6, tuple(g.double() for g in grads)
    )
    assert off(got, wanted) < BOUND


@pytest.mark.parametrize("tokens", [33, 256])
@pytest.mark.parametrize("is_gelu", [True, False])
def test_gated_activation_with_the_adapters_around_it(is_gelu: bool, tokens: int) -> None:
    from qlora_space.fast import kernels

    width, rank, down_rank = 5000, 32, 16
    gate_up, grad = draw(tokens, 2 * width), draw(tokens, width)
    h, b, a, g = (
        draw(*size) * 0.3
        for size in ((tokens, rank), (2 * width, rank), (down_rank, width), (tokens, down_rank))
    )
    wide, wide_grad, *adapters = (t.double() for t in (gate_up, grad, h, b, a, g))
    got = kernels.gated(gate_up, h, b, a, is_gelu)
    wanted = formulas.gated(wide, *adapters[:3], is_gelu)
    assert off(got[0], wanted[0]) < BOUND
    assert off(got[1], wanted[1]) < BOUND
    low = kernels.gated_backward(gate_up, h, b, a, g, grad, is_gelu)
    wanted_low = formulas.gated_backward(wide, *adapters, wide_grad, is_gelu)
    assert off(gate_up, wide) < BOUND
    assert off(grad, wide_grad) < BOUND
    assert off(low, wanted_low) < BOUND


@pytest.mark.parametrize("tokens", [33, 512])
def test_the_adapters_part_is_added_in_one_pass(tokens: int) -> None:
    from qlora_space.fast import kernels

    h, b, bias, added, to = (
        draw(*s) for s in ((tokens, 48), (1000, 48), (1000,), (tokens, 1000), (tokens, 1000))
    )
    wide = [t.double() for t in (h, b, bias, added, to)]
    assert off(kernels.expand(h, b), formulas.expand(*wide[:2])) < BOUND
    kernels.expand(h, b, bias, added, to)
    assert off(to, formulas.expand(*wide)) < BOUND
    a = draw(48, 1000)
    assert off(kernels.expand(h, a.t()), formulas.expand(wide[0], a.double().t())) < BOUND


def test_copies_of_all_adapters_are_those_of_the_formula() -> None:
    """Rows of another number than a tile's, blocks of a wider matrix, nothing written beside them."""
    from qlora_space.fast import kernels

    sources = [draw(*shape).float() for shape in ((16, 1000), (1030, 16), (77, 3))]
    matrix = torch.zeros(1030 + 77, 16 + 3, device="cuda", dtype=torch.bfloat16)
    targets = [draw(16, 1000), matrix[:1030, :16], matrix[1030:, 16:]]
    scales = [1.0, 0.7, 2.5]
    wanted = [(s * x).bfloat16() for s, x in zip(scales, sources, strict=True)]
    copy = kernels.scaled_copies(sources, targets, scales)
    copy()
    assert all(torch.equal(a, b) for a, b in zip(targets, wanted, strict=True))
    assert not matrix[:1030, 16:].any()
    assert not matrix[1030:, :16].any()
    sources[0].zero_()
    sources[1].data = torch.ones_like(sources[1])  # elsewhere
    copy()
    assert not targets[0].any()
    assert (targets[1] == torch.tensor(0.7, dtype=torch.bfloat16)).all()
    sources[2].data = sources[2].data.bfloat16()
    with pytest.raises(ValueError, match="contiguous fp32"):
        copy()


def test_an_embedding_table_in_host_memory_is_read_from_the_gpu() -> None:
    from qlora_space.fast import kernels

    table = torch.randn(500, 1100, dtype=torch.bfloat16).pin_memory()
    ids = torch.randint(500, (77,))
    assert torch.equal(kernels.gather(table, ids.cuda()).cpu(), table[ids])


def test_an_embedding_table_may_be_cached_on_the_gpu() -> None:
    table, ids = draw(500, 1100), torch.randint(500, (2, 77), device="cuda")
    embedding = HostEmbedding(table)
    embedding.cache_weight()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    embedding._table.zero_()
    assert torch.equal(embedding(ids), table[ids])
    embedding._table.copy_(table)
    embedding.release_weight()
    assert torch.cuda.memory_allocated() < before
    assert torch.equal(embedding(ids), table[ids])


@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_cross_entropy(cap: float) -> None:
    from qlora_space.fast import kernels

    logits, targets = draw(17, 151936) * 4, torch.randint(151936, (17,), device="cuda")
    targets[3] = -100
    wide = logits.double()
    losses = kernels.cross_entropy(logits, targets, cap)
    torch.testing.assert_close(
        losses.double(), formulas.cross_entropy(wide, targets, cap), rtol=1e-4, atol=1e-4
    )
    assert off(logits, wide) < BOUND


@pytest.mark.parametrize(
    ("lengths", "window"), [((128, 128), 0), ((100, 1, 59), 0), ((100, 156), 32)]
)
def test_attention_dense_packed_and_windowed(lengths: tuple[int, ...], window: int) -> None:
    from qlora_space.fast.attention import Attention, Documents

    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    docs = Documents(starts.cuda(), max(lengths), lengths[0] if min(lengths) == max(lengths) else 0)
    attention = Attention(64**-0.5, window)
    total = sum(lengths)
    q, dout = draw(total, 8, 64), draw(total, 8, 64)
    k, v = draw(total, 2, 64), draw(total, 2, 64)
    out, saved = attention.forward(q, k, v, docs)
    grads = attention.backward(dout, q, k, v, out, saved, docs)
    wide = [t.double().cpu() for t in (q, k, v)]
    assert off(out.cpu(), attention.forward(*wide, docs)[0]) < 2 * BOUND
    wanted = attention.backward(dout.double().cpu(), *wide, out, (), docs)
    for got, want in zip(grads, wanted, strict=True):
        assert got.shape == want.shape
        assert off(got.cpu(), want) < 2 * BOUND


@pytest.mark.parametrize("is_transposed", [False, True])
def test_weights_rounded_to_fp8_are_those_of_the_formula(is_transposed: bool) -> None:
    from qlora_space.fast import kernels

    weight = torch.randn(192, 320, device="cuda", dtype=torch.bfloat16)
    scale = fp8_scale(weight)
    got, wanted = (
        m.to_fp8(weight, scale, is_transposed=is_transposed) for m in (kernels, formulas)
    )
    assert got.shape == wanted.shape
    assert off(got.float(), wanted.float()) < 2e-3  # a quotient may fall on the other side


def test_rows_rounded_to_fp8_are_those_of_the_formula() -> None:
    from qlora_space.fast import kernels

    x = torch.randn(100, 24576, device="cuda", dtype=torch.bfloat16) * 3
    (got, scales), (wanted, wanted_scales) = kernels.quantize_rows(x), formulas.quantize_rows(x)
    torch.testing.assert_close(scales, wanted_scales)
    assert off(got.float(), wanted.float()) < 2e-3


def test_fp8_products_are_as_near_to_float64_as_their_rounding() -> None:
    weight = torch.randn(512, 256, device="cuda", dtype=torch.bfloat16) * 0.02
    x = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(128, 512, device="cuda", dtype=torch.bfloat16)
    fp8 = Fp8Weight(weight, fp8_scale(weight))
    assert off(fp8.product(x, None), x.double() @ weight.double().t()) < 0.05
    assert off(fp8.input_grad(dy), dy.double() @ weight.double()) < 0.05
