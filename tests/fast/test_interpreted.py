"""The kernels themselves without a GPU: Triton's interpreter runs them on CPU tensors, where Triton is installed."""

import os
import subprocess
import sys

import pytest

_CHECK = """
import torch, types
from triton.runtime import interpreter
from bitsandbytes.functional import dequantize_4bit, get_4bit_type
from bitsandbytes.nn import Params4bit
from qlora_space.fast import ActivationPolicy, formulas, kernels, ops
from qlora_space.fast.model import build, differences
from tests.fast.test_attention import ROWS, errors
from tests.fast.test_model import tiny

for nested in (True, False):
    weight = Params4bit(torch.randn(96, 192), compress_statistics=nested, quant_type="nf4").to("cpu")
    state, out = weight.quant_state, torch.empty(96, 192)
    two = (state.state2.code, state.state2.absmax, state.offset, state.state2.blocksize) if nested else None
    kernels.dequantize(
        weight.data.reshape(-1), state.absmax, two, get_4bit_type("nf4", device="cpu").float(), state.blocksize, out
    )
    state.dtype = torch.float32
    assert torch.equal(out, dequantize_4bit(weight.data, state))

known = interpreter._patch_lang_tensor

def with_bounds_of_loops(tensor, scope):  # numpy 2.4 no longer makes a number of an array of one
    known(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

interpreter._patch_lang_tensor = with_bounds_of_loops
for lengths in ROWS:
    for window in (0, 50):
        for mine, _ in errors("cpu", torch.float32, lengths, window, 4, 16):
            assert mine < 1e-6, (lengths, window, mine)

mixed = types.SimpleNamespace(**{name: getattr(kernels, name) for name in kernels.__all__})
for name in ("qwen3", "gemma3_text"):
    model = tiny(name, torch.float32)
    ops.on = lambda x: mixed
    fast = build(model, ActivationPolicy.LAYER, on_cpu=True)
    loss, gradients = differences(model, fast)
    ops.on = lambda x: formulas
    assert loss < 1e-5, (name, loss)
    assert gradients < 1e-4, (name, gradients)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whole_models_and_dequantization_by_interpreted_kernels() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-2000:]
