"""The closed form is the optimum, and no adapter init is worse than none."""

from typing import Any

import pytest
import torch

from qlora_space.lowbit.adapter_init import (
    covariance_root,
    damped,
    low_rank_correction,
    randomized_svd,
    solve_adapter_init,
)
from qlora_space.lowbit.grid import Quantized, grid_of, quantize

INITS = ["zero", "svd", "diagonal", "eora", "srr"]


def problem(seed: int, m: int = 96, n: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with heavy tails, inputs that are correlated and have a few loud channels."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=g) * torch.rand(m, 1, generator=g).mul(2).exp()
    x = torch.randn(512, n, generator=g) @ torch.randn(n, n, generator=g) * n**-0.5
    x = x * (1 + 10 * (torch.rand(n, generator=g) > 0.95))
    return w, x.T @ x / 512


def two_bits(w: torch.Tensor) -> Quantized:
    return quantize(w, grid_of(2, 32))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("r", [4, 16])
def test_the_full_init_is_within_half_a_percent_of_the_exact_optimum(seed: int, r: int) -> None:
    w, c = problem(seed)
    d = w - two_bits(w).dequantized()
    values, vectors = torch.linalg.eigh(damped(c))
    symmetric = vectors * values.sqrt() @ vectors.T
    singular = torch.linalg.svdvals(d.double() @ symmetric)
    optimum = float(singular[r:].square().sum())
    a, b = low_rank_correction(d, covariance_root(c), "eora", r)
    reached = float(((d - b @ a).double() @ symmetric).square().sum())
    assert optimum * (1 - 1e-5) <= reached <= optimum * 1.005


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("init", INITS)
def test_no_init_is_worse_than_none(seed: int, init: str) -> None:
    w, c = problem(seed)
    found = solve_adapter_init(w, covariance_root(c), two_bits, init, 8)
    assert found.error_repaired <= found.error_quantized
    assert found.a.shape == (8, 128)
    assert found.b.shape == (96, 8)
    assert found.a.dtype == found.b.dtype == torch.float32


@pytest.mark.parametrize("init", ["eora", "srr"])
def test_what_the_adapter_leaves_is_packed_again_where_that_is_better(init: Any) -> None:
    w, c = problem(0)
    root = covariance_root(c)
    once = solve_adapter_init(w, root, two_bits, init, 16)
    packed_again = lambda left, _: two_bits(left)  # noqa: E731
    again = solve_adapter_init(w, root, two_bits, init, 16, again=packed_again)
    assert again.error_repaired < 0.97 * once.error_repaired
    assert again.error_quantized == once.error_quantized  # of the codes that were made first
    q = again.quantized.dequantized() + again.b @ again.a
    d = (w - q).double()
    assert float((d @ damped(c) * d).sum()) == pytest.approx(
        again.error_repaired * float((w.double() @ damped(c) * w).sum()), rel=1e-3
    )


def test_a_better_measure_repairs_more() -> None:
    w, c = problem(0)
    errors = [
        solve_adapter_init(w, covariance_root(c), two_bits, init, 16).error_repaired
        for init in INITS
    ]
    zero, svd, diagonal, eora, srr = errors
    assert zero > svd > eora
    assert diagonal > eora >= srr


def test_a_zero_init_changes_nothing_and_can_learn() -> None:
    w, c = problem(0)
    found = solve_adapter_init(w, covariance_root(c), two_bits, "zero", 8)
    assert not found.b.any()
    assert found.a.abs().sum() > 0


def test_srr_keeps_the_better_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    w, c = problem(0)
    left, right = problem(7)[0][:, :8], problem(8)[0][:8]
    planted = w + 4 * left @ right
    plain, split = (
        solve_adapter_init(planted, covariance_root(c), two_bits, init, 16).error_repaired
        for init in ("eora", "srr")
    )
    assert split < 0.7 * plain
    monkeypatch.setattr("qlora_space.lowbit.adapter_init._split_rank", lambda w, root, r: 15)
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(3))
    plain, split = (
        solve_adapter_init(noise, covariance_root(c), two_bits, init, 16).error_repaired
        for init in ("eora", "srr")
    )
    assert split <= plain


def test_a_dead_input_channel_does_no_harm() -> None:
    w, c = problem(0)
    c[5] = c[:, 5] = 0
    found = solve_adapter_init(w, covariance_root(c), two_bits, "eora", 8)
    assert torch.isfinite(found.a).all()
    assert found.error_repaired < found.error_quantized


def test_a_rank_beyond_the_matrix_is_filled_with_zeros() -> None:
    u, s, v = randomized_svd(torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), 8)
    assert (u.shape, s.shape, v.shape) == ((6, 8), (8,), (8, 10))
    assert not s[6:].any()
