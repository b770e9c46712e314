"""FP8 products: as near as e4m3 can be, never exact by chance, and off where they change too much."""

import pytest
import torch

from qlora_space.fast import ActivationPolicy, formulas, make_batch
from qlora_space.fast.fp8 import Fp8Weight, fp8_scale
from qlora_space.fast.model import build, fast_gradients, relative, use_fp8
from tests.fast.test_model import tiny

# e4m3 has 3 bits of mantissa: each factor is off by 2^-5 at most and 2.6 % in the mean square.
LARGEST_ERROR = 0.05


def two_documents():
    ids = torch.randint(3, 320, (1, 56))
    positions = torch.cat([torch.arange(40), torch.arange(16)])[None]
    return make_batch(ids, ids, positions)


@pytest.mark.parametrize("is_cached", [False, True])
def test_products_and_their_gradients_are_near_the_exact_ones(is_cached: bool) -> None:
    weight, x = torch.randn(48, 32) * 0.02, torch.randn(10, 32)
    weight[0, 0] = 1.0  # one large weight does not spoil the small ones
    fp8 = Fp8Weight(weight, fp8_scale(weight))
    if is_cached:
        fp8.make_both()
    bias, dy = torch.randn(48), torch.randn(10, 48)
    assert 1e-3 < relative([fp8.product(x, bias) - bias], [x @ weight.t()]) < LARGEST_ERROR
    assert 1e-3 < relative([fp8.input_grad(dy)], [dy @ weight]) < LARGEST_ERROR


def test_rows_of_very_different_size_keep_their_precision() -> None:
    x = torch.randn(3, 64) * torch.tensor([[1e-6], [1.0], [1e6]])
    quantized, scale = formulas.quantize_rows(x)
    for row, wanted in zip(quantized.float() * scale, x, strict=True):
        assert relative([row], [wanted]) < LARGEST_ERROR
    zeros, scale = formulas.quantize_rows(torch.zeros(2, 16))
    assert (zeros.float() * scale).abs().sum() == 0


@pytest.mark.parametrize("policy", [ActivationPolicy.LAYER, ActivationPolicy.WEIGHTS])
def test_a_model_in_fp8_says_by_how_much_it_differs_and_is_exact_again_without(
    policy: ActivationPolicy,
) -> None:
    model, batch = tiny("qwen3"), two_documents()
    fast = build(model, policy, on_cpu=True)
    exact = fast_gradients(fast, batch)[1]
    text = use_fp8(fast, batch)
    fast.begin_micro_step()
    assert text.startswith("The base is multiplied in FP8")
    assert 1e-3 < relative(fast_gradients(fast, batch)[1], exact) < 0.3
    for linear in fast.linears:
        linear.use_fp8(is_used=False)
    assert relative(fast_gradients(fast, batch)[1], exact) < 1e-12


def test_a_base_that_fp8_changes_too_much_is_multiplied_exactly() -> None:
    """Beside one weight that is a million times as large, and has no effect, all others vanish in e4m3."""
    model, batch = tiny("llama"), two_documents()
    for layer in model.get_base_model().model.layers:
        up, down = (getattr(layer.mlp, n).base_layer.weight.data for n in ("up_proj", "down_proj"))
        up *= 20
        up[0, 0], down[:, 0] = 1e6, 0
    fast = build(model, ActivationPolicy.LAYER, on_cpu=True)
    assert use_fp8(fast, batch).startswith("Exact products are used: FP8 changes the loss")
    assert not any(linear.is_fp8 for linear in fast.linears)
