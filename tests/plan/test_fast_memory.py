"""What the fast step keeps: counted as its tuner counts, and as it was measured under every policy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.auto import CONFIG_MAPPING

from qlora_space.core.facts import ModelFacts, RowCounts
from qlora_space.core.request import TrainingRequest
from qlora_space.fast import ActivationPolicy
from qlora_space.fast.autotune import MemoryBudget, PolicyTuner
from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.model import FastModel, build
from qlora_space.fast.policies import FIRST_POLICY, own_bytes, policies_to_time
from qlora_space.hub.model_config import shape_of
from qlora_space.plan import Plan, resolve
from qlora_space.plan.batch_size import largest_batch_tokens
from qlora_space.plan.fast_memory import (
    activation_bytes,
    kept_for_speed_bytes,
    layer_shape,
    table_bytes,
)
from qlora_space.plan.memory import KEPT_FOR_SPEED, adapter_parameters, bits_per_weight
from tests.fast.test_model import EXTRA, TINY, tiny
from tests.plan.test_memory import GEMMA_9B, LLAMA_8B, QWEN3_0_6B, QWEN3_8B, QWEN3_14B
from tests.plan.test_resolve import gpu, rows

_GIB = 2**30
P = ActivationPolicy
# base, tokens at once, policy, measured GiB (torch's peak, fp32 states, rank 16): docs/figures/step-*, peers-*,
# memory-* and plan-memory-*. No constant comes from them but for Gemma 2 under OFFLOAD.
MEASURED = [
    (QWEN3_8B, 8192, P.OFFLOAD_QKV, 7.16), (QWEN3_8B, 2048, P.OFFLOAD_QKV, 6.07),
    (QWEN3_8B, 8192, P.LAYER, 9.16), (QWEN3_8B, 2048, P.LAYER, 6.54),
    (QWEN3_8B, 8192, P.QKV, 16.68),
    (QWEN3_8B, 8192, P.ALL, 29.83), (QWEN3_8B, 2048, P.ALL, 11.64),
    (QWEN3_8B, 8192, P.WEIGHTS, 51.27), (QWEN3_8B, 2048, P.WEIGHTS, 27.57),
    (QWEN3_8B, 3456, P.WEIGHTS, 33.28), (QWEN3_0_6B, 3456, P.WEIGHTS, 5.69),
    (QWEN3_0_6B, 8192, P.ALL, 7.58), (QWEN3_0_6B, 2048, P.ALL, 2.62),
    (QWEN3_0_6B, 8192, P.WEIGHTS, 10.59), (QWEN3_0_6B, 2048, P.WEIGHTS, 3.99),
    (QWEN3_14B, 8192, P.OFFLOAD_QKV, 11.53), (QWEN3_14B, 2048, P.OFFLOAD_QKV, 10.11),
    (QWEN3_14B, 8192, P.ALL, 44.96), (QWEN3_14B, 2048, P.ALL, 18.29),
    (QWEN3_14B, 8192, P.WEIGHTS, 81.04),
    (LLAMA_8B, 8192, P.OFFLOAD_QKV, 7.06), (LLAMA_8B, 2048, P.OFFLOAD_QKV, 5.93),
    (LLAMA_8B, 8192, P.WEIGHTS, 49.37), (LLAMA_8B, 2048, P.WEIGHTS, 26.84),
    (GEMMA_9B, 8192, P.OFFLOAD_QKV, 8.92), (GEMMA_9B, 2048, P.OFFLOAD_QKV, 7.57),
    (GEMMA_9B, 8192, P.ALL, 43.41), (GEMMA_9B, 2048, P.ALL, 16.18),
    (GEMMA_9B, 8192, P.WEIGHTS, 67.45), (GEMMA_9B, 2048, P.WEIGHTS, 33.81),
]  # fmt: skip


@pytest.mark.parametrize(("base", "tokens", "policy", "gib"), MEASURED)
def test_the_peak_under_a_policy_is_the_measured_one_within_a_tenth(
    base: ModelFacts, tokens: int, policy: ActivationPolicy, gib: float
) -> None:
    found = beside_bytes(base) + activation_bytes(base, tokens, 16, policy)
    assert found / _GIB == pytest.approx(gib, rel=0.07)


def beside_bytes(base: ModelFacts) -> int:
    """Weights in 4 bits, adapter, gradients, fp32 states and the fast step's copies."""
    linear = base.linear_parameters * bits_per_weight(4) / 8
    rest = 2 * (base.parameters - base.linear_parameters) - table_bytes(base)
    return round(linear + rest + adapter_parameters(base, 16) * (4 + 4 + 8 + 3))


def facts_of(name: str) -> ModelFacts:
    config = CONFIG_MAPPING[name](**TINY, **EXTRA[name]).to_dict()
    shape = shape_of(name, config)
    return QWEN3_8B.model_copy(update={"model_type": name, "tie_word_embeddings": False, **shape})


@pytest.mark.parametrize("name", sorted(EXTRA))
def test_the_layer_of_a_plan_is_that_of_the_model(name: str) -> None:
    fast = build(tiny(name), P.LAYER, on_cpu=True)
    assert [layer.shape for layer in fast.layers] == [layer_shape(facts_of(name))] * 2


def test_the_table_of_a_plan_is_the_one_that_moves_to_host_memory() -> None:
    base = facts_of("llama")
    assert table_bytes(base) == 2 * tiny("llama").get_input_embeddings().weight.numel()
    assert not table_bytes(base.model_copy(update={"tie_word_embeddings": True}))


@pytest.fixture(scope="module")
def fast() -> FastModel:
    """With its embedding table in host memory."""
    made = build(tiny("llama"), P.LAYER, on_cpu=True)
    table = HostEmbedding.__new__(HostEmbedding)  # page-locked memory is for machines with a GPU
    table.__dict__["_table"] = tiny("llama").get_input_embeddings().weight.bfloat16()
    made.__dict__["embed"] = table
    return made


def test_the_plan_predicts_the_policy_that_the_tuner_takes_from_the_same_memory(
    fast: FastModel,
) -> None:
    base, tokens, beside = facts_of("llama"), 2048, 10**7
    peaks = {p: beside + activation_bytes(base, tokens, 4, p) for p in P}
    seen = set()
    for cap in range(min(peaks.values()), math.ceil(max(peaks.values()) / 0.9), 50_000):
        tuner = PolicyTuner(fast, MemoryBudget(cap, pending=1000), None, "")
        best = tuner._best_fitting(peaks[FIRST_POLICY], tokens)
        kept = kept_for_speed_bytes(
            base, tokens, 4, beside=beside, least=peaks[P.OFFLOAD], free=cap, pending=1000
        )
        tried = (FIRST_POLICY, *(policies_to_time(best) or (best,)))
        assert kept == max(0, min(max(peaks[p] for p in tried), cap) - peaks[P.OFFLOAD])
        seen.add(best)
    assert seen >= {p for p in P if not p.is_on_host}


def test_the_tuner_counts_with_the_bytes_of_its_model(fast: FastModel) -> None:
    base, tuner = facts_of("llama"), PolicyTuner(fast, MemoryBudget(0, 0), None, "")
    for policy in P:
        own = own_bytes([layer_shape(base)] * 2, policy, 512, table_bytes(base))
        assert tuner._own_bytes(policy, 512) == own


def planned(free_gib: float = 139, **asked: object) -> Plan:
    return resolve(TrainingRequest.model_validate(asked), QWEN3_8B, rows(), gpu(free_gib))


def test_where_memory_is_free_the_peak_is_far_above_the_least() -> None:
    estimate = planned(max_length=2048, per_device_train_batch_size=2).estimate
    assert estimate.least_gib == pytest.approx(6.7, abs=0.2)
    assert estimate.peak_gib == pytest.approx(35.8, abs=0.5)
    (kept,) = [part for part in estimate.parts if part.name == KEPT_FOR_SPEED]
    assert kept.gib == pytest.approx(estimate.peak_gib - estimate.least_gib, abs=0.02)


@given(free_gib=st.floats(4, 140), rows_at_once=st.integers(1, 16), bits=st.sampled_from([2, 4, 8]))
def test_what_is_kept_never_decides_whether_a_plan_fits(
    free_gib: float, rows_at_once: int, bits: int
) -> None:
    asked = {"per_device_train_batch_size": rows_at_once, "bits": bits, "optim": "adamw_torch"}
    asked |= {"gradient_checkpointing": True}
    plan, rich = planned(free_gib, **asked), planned(139, **asked)
    estimate = plan.estimate
    if plan.cpu_offload == rich.cpu_offload:
        assert estimate.least_gib == rich.estimate.least_gib
        assert estimate.peak_gib <= rich.estimate.peak_gib
    if abs(estimate.least_gib - 0.92 * free_gib) > 0.01:
        assert estimate.fits == (estimate.least_gib < 0.92 * free_gib)
    assert estimate.least_gib <= estimate.peak_gib <= max(free_gib + 0.01, estimate.least_gib)


def test_the_plain_step_keeps_nothing_for_speed() -> None:
    estimate = planned(bits=8).estimate
    assert estimate.peak_gib == estimate.least_gib
    assert KEPT_FOR_SPEED not in {part.name for part in estimate.parts}


def counts(**changed: object) -> RowCounts:
    same = {
        "is_exact": True, "max_length": 1024, "rows": 400, "tokens": 320_000, "packed_rows": 400, "longest_row": 1000,
        "row_deviation": 50.0, "eval_fraction": 0.0, "most_held_out": 0, "held_out_rows": 0, "held_out_documents": 0,
    }  # fmt: skip
    return RowCounts.model_validate(same | changed)


def test_the_largest_micro_batch_is_one_of_the_rows_that_there_are() -> None:
    assert largest_batch_tokens(counts(), 4, is_fast=False) == 4 * 1024  # padded to the longest
    assert largest_batch_tokens(counts(longest_row=860), 4, is_fast=False) == 4 * 896
    assert largest_batch_tokens(counts(), 4, is_fast=True) == 4 * 800 + 3 * 2 * 50
    assert largest_batch_tokens(counts(), 1, is_fast=True) == 950
    assert largest_batch_tokens(counts(longest_row=900), 1, is_fast=True) == 900
    assert largest_batch_tokens(counts(is_exact=False), 4, is_fast=True) == 4 * 1024
    assert largest_batch_tokens(counts(longest_row=0), 4, is_fast=True) == 4 * 1024
