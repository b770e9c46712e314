"""gpt-oss as it is published: the 4-bit values of its experts are kept as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Mxfp4Config  # type: ignore

from qlora_space.core.errors import RequestError
from qlora_space.experts import packed_experts
from qlora_space.experts.stacks import Mxfp4Stack
from qlora_space.model.base import load_base
from tests.base_trial import plan_of, try_base
from tests.experts.reference import matrices
from tests.experts.tiny_mixtures import in_mxfp4

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_mxfp4(checkpoint("gpt-oss"), tmp_path_factory.mktemp("mxfp4") / "base")


def test_everything_that_one_does_with_it(folder: Path, tmp_path: Path) -> None:
    trial = try_base(folder, tmp_path)
    assert trial.is_whole, (trial.done, trial.refused, trial.crashed)
    assert trial.plan is not None
    assert trial.plan.base.expert_bits == 4.25
    assert [c.why for c in trial.plan.choices if c.name == "stored_weights"] == [
        "the checkpoint's own 4-bit values of experts are kept, not rounded again"
    ]
    with pytest.raises(RequestError, match="are in MXFP4, which is kept: it has 4 bits, not 16"):
        plan_of(folder, bits=16)


def test_every_value_is_that_of_transformers(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=Mxfp4Config(dequantize=True)
    )
    base = load_base(folder, 4, "cpu")
    found = dict(packed_experts(base))
    assert len(found) == 2
    for name, experts in found.items():
        original: Any = plain.get_submodule(name)
        for parameter in experts.names:
            assert isinstance(experts.stack(parameter), Mxfp4Stack)
            wanted: Any = getattr(original, parameter)
            assert torch.equal(matrices(experts, parameter, torch.bfloat16), wanted)
        bias: Any = experts.gate_up_proj_bias
        assert torch.equal(bias.float(), original.gate_up_proj_bias.float())
        codes = experts.packed_bytes - 2 * 16 * 4  # two tables
        assert codes * 8 / experts.packed_parameters == 4.25
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        got, wanted = base(ids).logits.float(), plain(ids).logits.float()
    assert (got - wanted).norm() < 0.03 * wanted.norm()
