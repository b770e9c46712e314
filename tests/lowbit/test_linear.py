"""Packing, ranges and the linear: nothing is lost in the bytes, and gradients are those of the dequantized weight."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.grid import Grid, grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.packing import pack, packed_width, unpack


def weight(m: int = 48, n: int = 256) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(0))


def linear(bits: int = 2, bias: bool = True, dtype: torch.dtype = torch.float32) -> LowBitLinear:
    quantized = quantize(weight(), grid_of(bits, 64))
    return LowBitLinear.from_quantized(quantized, torch.ones(48) if bias else None, dtype)


@settings(max_examples=40)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 99))
def test_codes_come_back_from_their_bytes(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack(packed, columns, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_the_stated_bits_are_the_stored_bits(bits: int, group_size: int) -> None:
    quantized = quantize(weight(64, 1024), grid_of(bits, group_size))
    layer = LowBitLinear.from_quantized(quantized, None, torch.bfloat16)
    stored = sum(b.numel() * b.element_size() * 8 for b in layer.state_dict().values())
    assert stored / (64 * 1024) == pytest.approx(layer.bits_per_weight, rel=1e-9)
    assert (bits, group_size) != (2, 64) or round(layer.bits_per_weight, 2) == 2.28


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_ranges_beat_the_whole_range(bits: int) -> None:
    w, grid = weight(), grid_of(bits, 64)
    groups = w.view(48, 4, 64)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    whole = ((groups - low) / step).round() * step + low
    ours = quantize(w, grid).dequantized()
    assert (ours - w).square().mean() < 0.9 * (whole.view_as(w) - w).square().mean()


def test_groups_of_zeros_and_of_one_sign_stay_what_they_are() -> None:
    w = weight().abs() + 1
    w[0] = 0
    found = quantize(w, grid_of(3, 64)).dequantized()
    assert torch.isfinite(found).all()
    assert not found[0].abs().max() > 1e-4
    assert (found[1:] - w[1:]).abs().mean() < 0.35


def test_rows_are_quantized_alike_alone_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(weight(), grid_of(2, 64))
    monkeypatch.setattr("qlora_space.lowbit.grid.WEIGHTS_AT_ONCE", {"cpu": 256})
    assert torch.equal(quantize(weight(), grid_of(2, 64)).codes, whole.codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_output_and_gradient_are_those_of_the_dequantized_weight(bits: int) -> None:
    layer, x = linear(bits), weight(5)[:, :256].clone().requires_grad_()
    q = layer.dequantized(torch.float64)
    reference = x.detach().double().requires_grad_()
    up = weight(5, 48)
    wanted = reference @ q.T + 1
    (wanted * up).sum().backward()
    output = layer(x)
    (output * up).sum().backward()
    torch.testing.assert_close(output.double(), wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(x.grad.double(), reference.grad, atol=1e-4, rtol=1e-5)


def test_the_dequantized_weight_is_not_kept_for_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, made = linear(), []
    whole = LowBitLinear.dequantized

    def watched(self: LowBitLinear, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        made.append(weakref.ref(q := whole(self, dtype)))
        return q

    monkeypatch.setattr(LowBitLinear, "dequantized", watched)
    output = layer(weight(3).requires_grad_())
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None
    output.sum().backward()
    assert len(made) == 2


def test_an_order_of_columns_is_followed() -> None:
    grid = Grid(2, 64, 8, 0.0, 1.0)
    plain = LowBitLinear.from_quantized(quantize(weight(), grid), None, torch.float32)
    layer = LowBitLinear(256, 48, grid, has_order=True, dtype=torch.float32)
    layer.load_state_dict(plain.state_dict(), strict=False)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2))
    layer.order.copy_(order)
    assert torch.equal(layer.dequantized(), plain.dequantized()[:, order])


def test_peft_finds_it_as_a_linear_and_a_merge_fails() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = linear(dtype=torch.bfloat16), nn.Linear(48, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.inner(x).float())

    model = get_peft_model(Model(), LoraConfig(r=4, lora_alpha=4, target_modules=["inner"]))
    lora = model.base_model.model.inner
    assert lora.lora_A["default"].weight.dtype == torch.float32
    assert lora.lora_A["default"].weight.shape == (4, 256)
    with pytest.raises(RuntimeError):
        model.merge_and_unload(safe_merge=True)
    with pytest.raises(RuntimeError):
        model.merge_adapter()


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match="100 inputs, which groups of 64 do not divide"):
        LowBitLinear(100, 8, grid_of(2, 64))
