"""A policy keeps as many bytes as the tuner counts, and the one that keeps most within the memory is taken."""

import json
from pathlib import Path

import pytest
import torch

from qlora_space.fast import ActivationPolicy, make_batch
from qlora_space.fast.autotune import MemoryBudget, PolicyTuner
from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.layer import StepContext
from qlora_space.fast.model import build
from qlora_space.fast.offload import Offloader
from qlora_space.fast.policies import saved_bytes, weight_bytes, working_bytes
from tests.fast.test_model import tiny

TOKENS = 128
ON_DEVICE = [r for r in ActivationPolicy if not r.is_on_host]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("policy", ON_DEVICE)
def test_saved_bytes_are_those_of_the_tensors(name: str, policy: ActivationPolicy) -> None:
    fast = build(tiny(name), policy, on_cpu=True)
    layer = fast.layers[0]
    ids = torch.arange(TOKENS)[None]
    batch = make_batch(ids, ids, ids)
    x = torch.randn(TOKENS, layer.qkv.inputs, dtype=torch.float64)
    with torch.no_grad():
        context = StepContext(
            batch.documents, fast._rotary_cos_sin(batch), policy, Offloader(last=1)
        )
        _, saved = layer.forward(x, context)
    large = [t for t in vars(saved).values() if isinstance(t, torch.Tensor)]
    size = sum(t.numel() * t.element_size() for t in large if t.shape[-1] > 12)  # not x Aᵀ
    assert size == TOKENS * saved_bytes(layer.shape, policy, element_size=8)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3"])
def test_weight_bytes_are_those_of_the_cached_weights(name: str) -> None:
    fast = build(tiny(name), ActivationPolicy.WEIGHTS, on_cpu=True)
    fast.begin_micro_step()
    for layer in fast.layers:
        cached = [linear._cached for linear in layer.linears]
        size = sum(t.numel() * t.element_size() for t in cached if isinstance(t, torch.Tensor))
        assert size == weight_bytes(layer.shape, ActivationPolicy.WEIGHTS, element_size=8)


def tuner(cap: int, file: Path | None = None) -> PolicyTuner:
    return PolicyTuner(
        build(tiny("llama"), ActivationPolicy.LAYER, on_cpu=True),
        MemoryBudget(cap, 0),
        file,
        "here",
    )


def test_the_policy_that_keeps_most_within_the_memory_is_taken() -> None:
    own = {r: tuner(0)._own_bytes(r, TOKENS) for r in ActivationPolicy}
    rest = 10**6
    for policy in ON_DEVICE:
        cap = int((rest + own[policy]) / 0.92) + 1
        assert tuner(cap)._best_fitting(rest + own[ActivationPolicy.LAYER], TOKENS) is policy
        assert tuner(cap - 100)._best_fitting(rest + own[ActivationPolicy.LAYER], TOKENS) < policy
    assert tuner(1)._best_fitting(rest, TOKENS) is ActivationPolicy.OFFLOAD


def test_a_table_in_host_memory_counts_where_a_copy_of_it_is_cached() -> None:
    here = tuner(0)
    before = {r: here._own_bytes(r, TOKENS) for r in ActivationPolicy}
    table = HostEmbedding.__new__(HostEmbedding)  # page-locked memory is for machines with a GPU
    torch.nn.Module.__init__(table)
    table._table = torch.zeros(100, 64, dtype=torch.bfloat16)
    here._fast.embed = table
    more = {r: here._own_bytes(r, TOKENS) - before[r] for r in ActivationPolicy}
    assert more == {r: 100 * 64 * 2 * (r is ActivationPolicy.WEIGHTS) for r in ActivationPolicy}


def test_what_is_as_wide_as_the_mlp_grows_with_the_tokens_where_gate_and_up_are_kept_only() -> None:
    layer = tuner(0)._fast.layers[0]
    sizes = [
        [working_bytes(layer.shape, r, n) for n in (8192, 10**6)]
        for r in (ActivationPolicy.QKV, ActivationPolicy.ALL)
    ]
    assert sizes[0][0] == sizes[0][1] == 8192 * 3 * 128 * 2
    assert sizes[1][1] == 10**6 * 128 * 2


def test_memory_that_runs_out_lowers_the_policy_for_good(tmp_path: Path) -> None:
    file = tmp_path / "activation_policies.json"
    first = tuner(10**9, file)
    first._is_first = False
    tried = []

    def micro_step() -> torch.Tensor:
        tried.append(first._fast.policy)
        if first._fast.policy > ActivationPolicy.OFFLOAD_QKV:
            raise torch.OutOfMemoryError
        return torch.zeros(())

    first(micro_step, TOKENS)
    assert tried == [ActivationPolicy.LAYER, ActivationPolicy.OFFLOAD_QKV]
    assert list(json.loads(file.read_text()).values()) == ["OFFLOAD_QKV"]


def test_a_step_that_wrote_gradients_already_is_not_repeated() -> None:
    one = tuner(10**9)
    one._is_first = False

    def micro_step() -> torch.Tensor:
        one._fast.is_in_backward = True
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        one(micro_step, TOKENS)
    assert one._fast.policy < ActivationPolicy.LAYER


def test_a_remembered_policy_is_taken_at_once_for_its_length_only(tmp_path: Path) -> None:
    file = tmp_path / "activation_policies.json"
    file.write_text(json.dumps({"here 1024 tokens": "QKV"}))
    known, other = tuner(1, file), tuner(1, file)
    known._load_policy(1000)
    other._load_policy(1025)
    assert (known._fast.policy, known.is_done) == (ActivationPolicy.QKV, True)
    assert not other.is_done
    file.write_text("not json")
    broken = tuner(1, file)
    broken._load_policy(1000)
    assert not broken.is_done
