"""Experts at 2 and 3 bits: packed block by block, stored, loaded, trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_space.core.errors import ModelError
from qlora_space.experts import packed_experts
from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.grid import grid_of, quantize
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards
from tests.base_trial import try_base
from tests.experts.reference import matrices

Checkpoint = Callable[[str], Path]
_SLOW = ("deepseek-v3", "qwen2-moe", "lfm2-moe")


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss", "mixtral", "ernie4.5-moe", "lfm2-moe"])
def test_experts_that_are_read_one_by_one_are_those_of_transformers(
    family: str, checkpoint: Checkpoint
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.bfloat16)
    model = empty_model(checkpoint(family))
    shards = Shards(checkpoint(family), model)
    for name, wanted in plain.state_dict().items():
        if shards.has(name):
            assert torch.equal(shards.read(name, "cpu"), wanted), name
    joined = [n for n in plain.state_dict() if n.endswith(("gate_up_proj", "down_proj"))]
    assert joined
    assert all(shards.has(name) for name in joined)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
def test_experts_have_the_codes_of_the_grid_also_when_stored_and_loaded(
    family: str, bits: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    packed = pack_base(checkpoint(family), bits, 32, "cpu", torch.float32)
    found = dict(packed_experts(packed))
    assert len(found) == 2
    for name, experts in found.items():
        for parameter in experts.names:
            original: Any = getattr(plain.get_submodule(name), parameter).data
            wanted = original[1].mT if experts.is_transposed else original[1]
            got = matrices(experts, parameter)[1]
            got = got.mT if experts.is_transposed else got
            assert torch.equal(got, quantize(wanted, grid_of(bits, 32)).dequantized())
    save_lowbit(packed, tmp_path / "packed")
    loaded = load_lowbit(tmp_path / "packed", "cpu", torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, loaded(ids).logits)
    routers = [n for n, m in packed.named_modules() if isinstance(m, LowBitLinear) and "gate" in n]
    assert not routers


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "family", ["qwen3-moe", *(pytest.param(f, marks=pytest.mark.slow) for f in _SLOW)]
)
def test_everything_that_one_does_at_2_bits(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    trial = try_base(checkpoint(family), tmp_path, bits=2, group_size=32)
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)


def test_groups_that_do_not_divide_the_inputs_are_refused() -> None:
    with pytest.raises(ModelError, match="48 inputs, which groups of 64 do not divide"):
        quantize(torch.zeros(4, 48), grid_of(2, 64))
