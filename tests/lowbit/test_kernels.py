"""The kernel that dequantizes, against plain torch: interpreted where Triton is installed, and on a GPU."""

import os
import subprocess
import sys

import pytest

_CHECK = """
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


def check(device: str, **environment: str) -> None:
    found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, device],
        env=found,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_interpreted_kernel_gives_every_weight_as_plain_torch_does() -> None:
    pytest.importorskip("triton")
    check("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_the_kernel_gives_every_weight_as_plain_torch_does() -> None:
    check("cuda")
