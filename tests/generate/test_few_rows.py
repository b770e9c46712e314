"""The kernels of a pass of one token a row: interpreted where Triton is installed, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import DynamicCache

from qlora_space.generate import engine as engine_module
from qlora_space.generate.engine import Ask, Engine
from qlora_space.generate.row_adapters import is_packed
from qlora_space.generate.slots import SlotCache
from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from tests.generate.test_engine import PROMPTS, tiny

_KERNELS = """
import sys, torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch.nn import functional as F
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from triton.runtime import interpreter

known = interpreter._patch_lang_tensor

def with_bounds_of_loops(tensor, scope):  # numpy 2.4 no longer makes a number of an array of one
    known(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

interpreter._patch_lang_tensor = with_bounds_of_loops

from qlora_space.generate import few_rows
from qlora_space.generate.row_adapters import LowRank
from qlora_space.lowbit.grid import grid_of
from qlora_space.lowbit.linear import LowBitLinear

device = sys.argv[1]
kind = torch.bfloat16 if device == "cuda" else torch.float16  # the interpreter does not round to bfloat16
torch.manual_seed(0)

def draw(*size):
    return torch.randn(*size, device=device).to(kind)

def nf4(outputs, inputs, nested):
    weight = Params4bit(torch.randn(outputs, inputs), requires_grad=False, compress_statistics=nested, quant_type="nf4")
    weight = weight.to(device)
    linear = Linear4bit(inputs, outputs, bias=False)
    linear.weight, linear.bias = weight, torch.nn.Parameter(draw(outputs), requires_grad=False)
    return linear, dequantize_4bit(weight.data, weight.quant_state)

def grid(outputs, inputs, bits, group=64):
    linear = LowBitLinear(inputs, outputs, grid_of(bits, group), device=device)
    linear.codes.random_(0, 256), linear.zeros.random_(0, 256), linear.scales.uniform_(0.01, 0.02)
    return linear, linear.dequantized()

def off(got, wanted):
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())

for size in ((72, 256), (136, 704), (64, 2240)) if device == "cuda" else ((72, 320),):
    for linear, weight in (*(nf4(*size, n) for n in (True, False)), *(grid(*size, b) for b in (2, 3, 4))):
        product = few_rows.product_of(linear)
        for rows in (1, 3, 20) if device == "cuda" else (3, 17):
            x = draw(rows, 1, size[1])
            x[0] *= 1e6 if device == "cuda" else 100  # larger than fp16 holds
            adapter = LowRank(draw(5, size[1]) * 0.1, draw(size[0], 5), torch.rand(rows, 1, 5, device=device).to(kind))
            wanted = x.double() @ weight.double().T + (0 if linear.bias is None else linear.bias.double())
            low = (x.double() @ adapter.down.double().T) * adapter.strength.double()
            for r in range(rows):
                assert off(product(x)[r], wanted[r]) < 5e-3, (size, rows, r, linear)
                assert off(product(x, adapter)[r], (wanted + low @ adapter.up.double().T)[r]) < 1e-2, (size, rows, r)

for bits, group in ((2, 32), (3, 32)):  # too few inputs at once for tensor cores
    assert few_rows.product_of(grid(64, 256, bits, group)[0]) is None

q, k = draw(3, 1, 4, 48).transpose(1, 2), draw(3, 1, 2, 48).transpose(1, 2)
angle = torch.rand(3, 1, 24, device=device).repeat(1, 1, 2)
cos, sin = angle.cos().to(kind), angle.sin().to(kind)
for got, wanted in zip(few_rows.rotate(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin)):
    assert off(got, wanted) < 1e-2

keys = torch.zeros(4, 2, 200, 48, device=device, dtype=kind)
values = torch.zeros_like(keys)
positions = torch.tensor([3, 199, 70, 0], device=device)
few_rows.keep(k, k + 1, keys, values, positions)
for r in range(3):
    assert torch.equal(keys[r, :, positions[r]], k[r, :, 0]), r
    assert torch.equal(values[r, :, positions[r]], (k + 1)[r, :, 0]), r
assert keys.count_nonzero() == k.count_nonzero()

keys.normal_(), values.normal_()
mask = (torch.arange(200, device=device) <= positions[:3, None])[:, None, None]
mask[1, ..., :20] = False
for _ in range(2):  # what programs share is as it was
    got = few_rows.attend(q, keys[:3], values[:3], mask, 0.2)
    wanted = F.scaled_dot_product_attention(
        q.float(), keys[:3].float(), values[:3].float(), attn_mask=mask, scale=0.2, enable_gqa=True
    ).transpose(1, 2)
    assert off(got, wanted) < 1e-2
"""


def check(device: str, **environment: str) -> None:
    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", _KERNELS, device],
        env=found,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_interpreted_kernels_give_what_plain_torch_does() -> None:
    pytest.importorskip("triton")
    check("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_kernels_give_what_plain_torch_does() -> None:
    check("cuda")


def test_an_engine_whose_kernels_fail_answers_without_them(monkeypatch) -> None:
    model = tiny("qwen3")
    asks = [Ask(prompt, 6) for prompt in PROMPTS]
    wanted = Engine(model, set(), ["default"]).answers(asks)
    monkeypatch.setattr(engine_module, "few_rows_on", lambda *_: sys)  # they cannot run on a CPU
    engine = Engine(model, set(), ["default"])
    assert engine.answers(asks) == wanted
    assert engine._few_rows is None


def test_keys_and_values_of_different_widths_are_kept_without_the_kernel() -> None:
    """As MiniCPM 3 has them: the kernel would write beyond the narrower one."""
    cache = SlotCache(2, 8, None, torch.device("cpu"), sys)  # which has no kernel
    prompt = DynamicCache()
    prompt.update(torch.ones(2, 1, 3, 32), torch.ones(2, 1, 3, 8), 0)
    cache.fill(0, prompt, [3, 2])
    cache.num_rows = 2
    keys, values = cache.update(torch.full((2, 1, 1, 32), 5.0), torch.full((2, 1, 1, 8), 7.0), 0)
    assert keys[0, 0, 3].tolist() == [5.0] * 32
    assert values[1, 0, 2].tolist() == [7.0] * 8


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text", "phi3", "olmo2", "minicpm3"])
@pytest.mark.parametrize("bits", [4, 3])
def test_an_engine_with_kernels_answers_as_one_without(family: str, bits: int, monkeypatch) -> None:
    model = packed(family, bits)
    asks = [Ask(prompt, 6, (strength,)) for prompt in PROMPTS for strength in (0.0, 1.0)]
    engine = Engine(model, set(), ["default"])
    found = [token for tokens in engine.stream(asks) for token in tokens]
    assert engine._few_rows is not None
    assert engine._one_token is not None
    assert engine._one_token._norms
    monkeypatch.setattr(engine_module, "few_rows_on", lambda *_: None)
    plain = Engine(model, set(), ["default"])
    wanted = [token for tokens in plain.stream(asks) for token in tokens]
    for ask in range(len(asks)):
        for got, own in zip(
            *([t for t in ts if t.ask == ask] for ts in (found, wanted)), strict=True
        ):
            if got.id != own.id:
                break  # two that are as likely: what follows differs
            assert got.log_prob == pytest.approx(own.log_prob, abs=0.1)
    same = sum(a.id == b.id for a, b in zip(found, wanted, strict=True))
    assert same > 0.8 * len(found)


def packed(family: str, bits: int) -> PeftModel:
    """The tiny model of test_engine.py on a GPU in 16 bits, its linears in `bits`."""
    model = tiny(family)
    base = model.get_base_model().to("cuda", torch.bfloat16)
    head = base.get_output_embeddings()
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            linear = child.base_layer if isinstance(child, LoraLayer) else child
            if not isinstance(linear, torch.nn.Linear) or linear is head or is_packed(linear):
                continue
            if isinstance(module, torch.nn.ModuleDict):  # of an adapter
                continue
            if bits == 4:
                from qlora_space.fast import nf4_linear

                low = nf4_linear(linear.weight.data, None, torch.bfloat16)
            else:
                quantized = quantize(linear.weight.data.float(), grid_of(bits, 64))
                low = LowBitLinear.from_quantized(quantized, None, torch.bfloat16)
            if child is linear:
                setattr(module, name, low)
            else:
                child.base_layer = low
    return model
