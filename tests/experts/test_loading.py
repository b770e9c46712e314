"""Experts are packed while transformers loads them, for every family, and compute what the 16-bit ones do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from qlora_space.core.errors import ModelError
from qlora_space.experts import packed_experts
from qlora_space.experts.module import make_packable
from tests.experts.reference import packed_base, plain_base
from tests.experts.tiny_mixtures import FAMILIES

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_mixture_computes_what_transformers_does(
    family: str, checkpoint: Checkpoint
) -> None:
    packed = packed_base(checkpoint(family))
    plain = plain_base(checkpoint(family), packed)
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
    fused = sum(p.numel() for n, p in plain.named_parameters() if p.dim() == 3 and "experts" in n)
    assert sum(e.packed_parameters for _, e in packed_experts(packed)) == fused > 0
    for _, experts in packed_experts(packed):
        stored = experts.packed_bytes - 2 * 1024 - 2 * 64 - 2 * 4  # two code books, tables, offsets
        assert stored * 8 / experts.packed_parameters == pytest.approx(4.127, abs=0.01)
        # Biases are all that is left of what transformers had.
        assert all(n.endswith("_bias") for n, _ in experts.named_parameters())


@pytest.mark.parametrize("family", ["qwen2-moe", "lfm2-moe", "deepseek-v3"])
def test_routers_and_gates_of_shared_experts_stay_in_16_bits(
    family: str, checkpoint: Checkpoint
) -> None:
    packed = packed_base(checkpoint(family))
    in_4_bits = {
        n.rpartition(".")[2] for n, m in packed.named_modules() if isinstance(m, Linear4bit)
    }
    assert not in_4_bits & {"gate", "router", "shared_expert_gate", "lm_head"}
    assert in_4_bits >= {"o_proj"} or in_4_bits >= {"out_proj"}


class _Unknown(nn.Module):
    """Experts without transformers' interface, as Llama 4 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 64, 128))
        self.down_proj = nn.Parameter(torch.zeros(2, 64, 64))


def test_experts_that_cannot_be_packed_are_refused_and_never_left_in_16_bits() -> None:
    model = nn.ModuleDict({"experts": _Unknown()})
    with pytest.raises(ModelError, match=r"The experts of this base \(_Unknown\)"):
        make_packable(model)


def test_matrices_that_blocks_do_not_divide_are_refused(checkpoint: Checkpoint) -> None:
    _, experts = next(packed_experts(packed_base(checkpoint("qwen3-moe"))))
    shape = (8, 3, 33)
    experts.shapes["down_proj"] = shape
    with pytest.raises(ModelError, match="8 experts of 3 by 33 weights"):
        experts.pack("down_proj", torch.zeros(shape))
    with pytest.raises(ModelError, match=r"config.json states \(8, 3, 33\)"):
        experts.pack("down_proj", torch.zeros(8, 64, 64))


def test_a_base_is_loaded_without_its_experts_in_16_bits(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time is more than one parameter of the experts there."""
    from qlora_space.experts.module import PackedExperts

    alive: list[Any] = []
    most = 0
    pack = PackedExperts.pack

    def watched(self: PackedExperts, name: str, weight: torch.Tensor) -> None:
        nonlocal most
        import weakref

        alive.append(weakref.ref(weight))
        most = max(most, sum(ref() is not None for ref in alive))
        pack(self, name, weight)

    monkeypatch.setattr(PackedExperts, "pack", watched)
    packed_base(checkpoint("qwen3-moe"))
    assert len(alive) == 4
    assert most == 1
