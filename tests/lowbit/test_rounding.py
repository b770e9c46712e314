"""Rounding by inputs: less output error than rounding by weights, each of its steps for a reason of its own."""

from dataclasses import replace

import pytest
import torch

from qlora_space.lowbit import rounding
from qlora_space.lowbit.adapter_init import damped
from qlora_space.lowbit.grid import Grid, grid_of, quantize, zeros_of
from qlora_space.lowbit.rounding import (
    Inputs,
    Levels,
    descend,
    fitted_scales,
    gptq,
    quantize_by_inputs,
)
from tests.lowbit.test_adapter_init import problem


def output_error(w: torch.Tensor, dequantized: torch.Tensor, covariance: torch.Tensor) -> float:
    d = (w - dequantized).double()
    return float((d @ covariance.double() * d).sum())


def squared_error(
    w: torch.Tensor, codes: torch.Tensor, inputs: Inputs, levels: Levels
) -> torch.Tensor:
    """(m): the mean square of each output's error, for w and codes (n, m)."""
    d = (w - levels.values(codes)).double()
    return (inputs.covariance.double() @ d * d).sum(0)


def begun(bits: int, size: int) -> tuple[torch.Tensor, Inputs, Levels]:
    """A weight with its columns first, and ranges for it."""
    w, c = problem(1)
    inputs, grid = Inputs.of(damped(c)), grid_of(bits, size)
    ranges = quantize(w, grid, inputs.covariance.diagonal())
    scale, zero = ranges.scales.T.float().contiguous(), zeros_of(grid, ranges.zeros).T.contiguous()
    levels = Levels(scale, zero, torch.arange(len(c)) // size, 2**bits - 1)
    return w.T.contiguous(), inputs, levels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_output_error_is_far_below_that_of_rounding_by_weights(seed: int, bits: int) -> None:
    w, c = problem(seed)
    grid, inputs = grid_of(bits, 32), Inputs.of(damped(c))
    by_inputs = quantize_by_inputs(w, inputs=inputs, grid=grid)
    assert by_inputs.scales.dtype == torch.float16
    assert (by_inputs.codes.shape, by_inputs.codes.max() < 2**bits) == (w.shape, True)
    plain = output_error(w, quantize(w, grid).dequantized(), c)
    assert output_error(w, by_inputs.dequantized(), c) < 0.5 * plain


def test_a_single_large_weight_under_a_loud_input_is_kept() -> None:
    """Super weights: one in a million, and perplexity goes with it (arXiv 2411.07191)."""
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    w[3, 7] = 30.0
    c = torch.eye(64)
    c[7, 7] = 1e4
    for rounds in (0, 2):  # its range is right from the start
        inputs, grid = Inputs.of(damped(c)), grid_of(2, 64)
        found = quantize_by_inputs(w, inputs=inputs, grid=grid, rounds=rounds).dequantized()
        assert found[3, 7] == pytest.approx(30, rel=0.01)
    assert quantize(w, grid_of(2, 64)).dequantized()[3, 7] < 25


def test_gptq_compensates_as_the_inverse_of_the_columns_that_are_left_says() -> None:
    """Optimal Brain Quantization by its own formula: w_F -= e / (H_F^-1)_qq (H_F^-1)_q,F, H_F of unrounded columns."""
    w, inputs, levels = begun(3, 32)
    left, wanted = w.double()[inputs.order], torch.empty_like(w, dtype=torch.uint8)
    ordered = inputs.covariance[inputs.order][:, inputs.order].double()
    for i, column in enumerate(inputs.order.tolist()):
        inverse = torch.linalg.inv(ordered[i:, i:])
        scale, zero = levels.scale[levels.group[column]], levels.zero[levels.group[column]]
        code = (left[i] / scale + zero).round().clamp(0, levels.top)
        wanted[column] = code.to(torch.uint8)
        left[i:] -= inverse[0, :, None] / inverse[0, 0] * (left[i] - (code - zero) * scale)
    assert (gptq(w, inputs, levels) != wanted).float().mean() < 0.002  # ties by rounding


def test_each_step_lowers_the_error_of_every_row() -> None:
    w, inputs, levels = begun(2, 32)
    codes = gptq(w, inputs, levels)
    first = squared_error(w, codes, inputs, levels)
    better = descend(w, codes, inputs, levels)
    second = squared_error(w, better, inputs, levels)
    assert (second <= first * (1 + 1e-4)).all()
    assert second.sum() < 0.99 * first.sum()
    fitted = replace(levels, scale=fitted_scales(w, better, inputs, levels))
    third = squared_error(w, better, inputs, fitted)
    assert (third <= second * (1 + 1e-5)).all()
    assert third.sum() < 0.99 * second.sum()
    for factor in (0.98, 1.02):  # of one group of scales: no better ones are near
        moved = fitted.scale.clone()
        moved[1] *= factor
        off = squared_error(w, better, inputs, replace(fitted, scale=moved))
        assert off.sum() > third.sum()


def test_the_descent_gives_each_column_the_best_code_beside_those_of_all_others() -> None:
    """From the definition, one after the other: the code whose value is nearest to q_i + (C (w - q))_i / C_ii."""
    w, inputs, levels = begun(2, 32)
    codes = gptq(w, inputs, levels)
    c, values, wanted = inputs.covariance.double(), levels.values(codes).double(), codes.clone()
    for i in range(len(w)):
        scale, zero = levels.scale[levels.group[i]], levels.zero[levels.group[i]]
        target = values[i] + (c[i] @ (w - values)) / c[i, i]
        code = (target / scale + zero).round().clamp(0, levels.top)
        wanted[i], values[i] = code.to(torch.uint8), (code - zero) * scale
    assert (wanted != codes).float().mean() > 0.05
    assert (descend(w, codes, inputs, levels) != wanted).float().mean() < 0.002


def test_a_scale_never_falls_below_the_smallest_that_fp16_holds() -> None:
    w, inputs, levels = begun(3, 32)
    codes = gptq(w, inputs, levels)
    smallest = replace(levels, scale=torch.full_like(levels.scale, 2**-24))
    left = smallest.values(codes) * 0.4
    assert fitted_scales(left, codes, inputs, smallest).min() >= 2**-24


def test_a_column_is_moved_by_columns_of_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    w, inputs, levels = begun(3, 32)
    codes = gptq(w, inputs, levels)
    found = (codes, descend(w, codes, inputs, levels))
    monkeypatch.setattr(rounding, "_COLUMNS_AT_ONCE", {"cpu": 48})
    again = (gptq(w, inputs, levels), descend(w, codes, inputs, levels))
    for one, other in zip(found, again, strict=True):
        assert (one != other).float().mean() < 0.002


def test_rows_are_quantized_alike_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    w, c = problem(2)
    inputs, grid = Inputs.of(damped(c)), grid_of(2, 32)
    whole = quantize_by_inputs(w, inputs=inputs, grid=grid)
    monkeypatch.setattr(rounding, "WEIGHTS_AT_ONCE", {"cpu": 8 * w.shape[1]})
    apart = quantize_by_inputs(w, inputs=inputs, grid=grid)
    assert (apart.codes != whole.codes).float().mean() < 0.002


def test_the_ranges_of_a_weight_that_was_nearly_the_same_serve_as_well_as_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w, c = problem(2)
    near = w + 0.02 * torch.randn(w.shape, generator=torch.Generator().manual_seed(5))
    inputs, grid = Inputs.of(damped(c)), grid_of(3, 32)
    monkeypatch.setattr(rounding, "WEIGHTS_AT_ONCE", {"cpu": 8 * w.shape[1]})
    new = quantize_by_inputs(near, inputs=inputs, grid=grid)
    like = quantize_by_inputs(w, inputs=inputs, grid=grid)
    used = quantize_by_inputs(near, like, inputs=inputs, grid=grid)
    assert torch.equal(used.zeros, like.zeros)
    used_error, new_error = (output_error(near, q.dequantized(), c) for q in (used, new))
    assert used_error < 1.05 * new_error


def test_weights_and_inputs_of_zero_stay_zero_and_finite() -> None:
    w, c = problem(0)
    w[0], w[5:9, :64] = 0, 0
    c[:, 10], c[10] = 0, 0
    found = quantize_by_inputs(w, inputs=Inputs.of(damped(c)), grid=grid_of(2, 32)).dequantized()
    assert torch.isfinite(found).all()
    assert found[0].abs().max() < 1e-4
    nothing = quantize_by_inputs(
        w, inputs=Inputs.of(damped(torch.zeros(128, 128))), grid=Grid(4, 64, 4, 1, 1)
    )
    assert torch.isfinite(nothing.dequantized()).all()
