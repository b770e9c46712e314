"""The embedded base, quantized once for every file of tests."""

import pytest
import torch

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.lowbit import LowBitBase, Recipe, Windows, quantize_base

CALIBRATION = 6
GROUP = 32


@pytest.fixture(scope="session")
def windows() -> Windows:
    ids = torch.randint(10, 400, (CALIBRATION + 2, 48), generator=torch.Generator().manual_seed(0))
    is_text = torch.ones_like(ids, dtype=torch.bool)
    is_text[2, 30:] = False
    ids[2, 30:] = 0
    return Windows(ids, is_text, CALIBRATION)


@pytest.fixture(scope="session")
def built(windows: Windows) -> LowBitBase:
    """Its model is shared: copy it before it is changed."""
    recipe = Recipe(bits=2, group_size=GROUP, r=8)
    return quantize_base(BASE_FOLDER, recipe, windows, device="cpu", dtype=torch.float32)
