"""The kernels that dequantize and round, against plain torch: interpreted where Triton is installed, and on a GPU."""

import os
import subprocess
import sys

import pytest

_DEQUANTIZES = """
import sys, torch
from qlora_space.lowbit import kernels
from qlora_space.lowbit.grid import Grid, grid_of, dequantized, unpacked
from qlora_space.lowbit.packing import packed_width

device = sys.argv[1]
torch.manual_seed(0)
grids = [grid_of(bits, size) for bits in (2, 3, 4) for size in (32, 64, 128)]
grids += [Grid(bits, size, bits, 1.0, 1.0) for bits in (2, 3, 4, 8) for size in (32, 192, 384)]
for grid in grids:
    m, n = 37, 384
    groups = n // grid.group_size
    draw = lambda width: torch.randint(256, (m, width), dtype=torch.uint8, device=device)
    codes, zeros = draw(packed_width(n, grid.bits)), draw(packed_width(groups, grid.zero_bits))
    scales = torch.rand(m, groups, device=device).half()
    # The interpreter does not round to bfloat16.
    for dtype in (torch.float32, torch.bfloat16 if device == "cuda" else torch.float16):
        wanted = unpacked(grid, n, codes, scales, zeros).dequantized().to(dtype)
        whole = torch.full((2 * m, n), 7, dtype=dtype, device=device)
        kernels.dequantize(grid, codes, scales, zeros, whole[:m])
        assert torch.equal(whole[:m], wanted), (grid, dtype)
        assert (whole[m:] == 7).all(), grid
"""


_ROUNDS = """
import sys, torch
from qlora_space.lowbit import rounding, rounding_kernels

device = sys.argv[1]
torch.manual_seed(0)
for n, m, size, top in ((128, 37, 64, 3), (96, 20, 32, 7), (192, 50, 64, 15)):
    x = torch.randn(300, n) @ torch.randn(n, n) / n**0.5
    c = (x.T @ x / 300).double()
    c.diagonal().add_(0.01 * c.diagonal().mean())
    inputs, w = rounding.Inputs.of(c), torch.randn(n, m)
    scale, zero = torch.rand(n // size, m) * 0.3 + 0.5, torch.full((n // size, m), top / 2)
    levels = rounding.Levels(scale, zero, torch.arange(n) // size, top)
    codes = rounding.gptq(w, inputs, levels)
    better = rounding.descend(w, codes, inputs, levels)

    def moved(value):
        return value.to(device)

    def round_block(targets, now, feedback, levels, block, codes):
        errors = torch.empty_like(targets[block])
        rounding_kernels.round_block(targets, now, feedback, levels, block.start, codes, errors)
        return errors

    rounding._COLUMNS_AT_ONCE, usual = {"cpu": 128, "cuda": 128}, rounding._COLUMNS_AT_ONCE
    rounding._round_block, plain = round_block, rounding._round_block
    there = rounding.Inputs(*(moved(getattr(inputs, f)) for f in inputs.__dataclass_fields__))
    levels = rounding.Levels(moved(scale), moved(zero), moved(levels.group), top)
    for found, wanted in (
        (rounding.gptq(moved(w), there, levels), codes),
        (rounding.descend(moved(w), moved(codes), there, levels), better),
    ):
        assert (found.cpu() != wanted).float().mean() < 0.002, (n, m)
    rounding._COLUMNS_AT_ONCE, rounding._round_block = usual, plain
"""

_SEARCHES = """
import sys, torch
from qlora_space.lowbit import range_kernels
from qlora_space.lowbit.grid import _in_groups, _search_ranges, dequantized, _codes, grid_of

device = sys.argv[1]
torch.manual_seed(0)
for bits in (2, 3, 4):
    for size in (32, 64, 96):
        grid = grid_of(bits, size)
        w = torch.randn(23, 5, size) * torch.rand(23, 5, 1)
        w[0, 0] = 0
        w[1, 1, 3] = 40
        counts = _in_groups(torch.rand(5 * size).square(), size)
        def error(found):
            scales, zeros = (part.cpu() for part in found)
            off = dequantized(grid, _codes(w, scales, zeros, grid).view(23, -1), scales, zeros) - w.view(23, -1)
            return (off.view(w.shape).square() * counts).sum(-1)
        wanted = error(_search_ranges(w, grid, counts))
        found = error(range_kernels.search_ranges(w.to(device), grid, counts.to(device)))
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-12), (bits, size, (found / wanted).max())
"""

_SCRIPTS = {"dequantizes": _DEQUANTIZES, "rounds": _ROUNDS, "searches": _SEARCHES}


def check(script: str, device: str, **environment: str) -> None:
    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", script, device],
        env=found,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", _SCRIPTS.values(), ids=_SCRIPTS)
def test_an_interpreted_kernel_gives_what_plain_torch_does(script: str) -> None:
    pytest.importorskip("triton")
    check(script, "cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.parametrize("script", _SCRIPTS.values(), ids=_SCRIPTS)
def test_a_kernel_gives_what_plain_torch_does(script: str) -> None:
    check(script, "cuda")
