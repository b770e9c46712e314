"""Which runs take the fast step, and that the others say why not."""

import pytest

from qlora_space.plan import resolve
from qlora_space.request import TrainingRequest
from tests.plan.test_resolve import QWEN3_8B, gpu, rows


def plan(request: TrainingRequest, base=QWEN3_8B, free_gib: float = 139):
    return resolve(request, base, rows(), gpu(free_gib))


def why(plan) -> str:
    return next(c.why for c in plan.choices if c.name == "step")


def test_a_known_base_at_four_bits_on_a_gpu_is_trained_fast() -> None:
    assert plan(TrainingRequest()).step == "fast"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"bits": 8}, "4 bits and fewer"),
        ({"lora_dropout": 0.1}, "dropout"),
        ({"r": 128}, "ranks up to 64"),
    ],
)
def test_what_the_fast_step_does_not_do_is_done_plainly_and_said(asked: dict, reason: str) -> None:
    made = plan(TrainingRequest(**asked))
    assert made.step == "plain"
    assert reason in why(made)


def test_an_unknown_architecture_is_named() -> None:
    base = QWEN3_8B.model_copy(update={"model_type": "mamba", "architecture": "MambaForCausalLM"})
    assert "MambaForCausalLM" in why(plan(TrainingRequest(), base))


def test_a_fast_plan_asks_for_less_memory_and_less_time_than_a_plain_one() -> None:
    fast, slow = (
        plan(TrainingRequest(lora_dropout=d, per_device_train_batch_size=4, gradient_checkpointing=True))
        for d in (0.0, 0.1)
    )  # fmt: skip
    assert fast.estimate.peak_gib < slow.estimate.peak_gib
    assert fast.estimate.seconds < slow.estimate.seconds


def test_eight_bit_states_are_for_cards_that_need_them() -> None:
    assert plan(TrainingRequest()).optim == "adamw_torch"
    assert plan(TrainingRequest(), free_gib=7.2).optim == "paged_adamw_8bit"


@pytest.mark.parametrize(
    ("has_fp8", "asked", "is_used", "reason"),
    [
        (True, {"fp8": True}, True, ""),
        (True, {}, False, ""),
        (False, {"fp8": True}, False, "this hardware has no such products"),
        (True, {"fp8": True, "bits": 8}, False, "only the fast step"),
    ],
)
def test_fp8_is_used_where_it_was_asked_for_and_can_be(has_fp8, asked, is_used, reason) -> None:
    hardware = gpu(139).model_copy(update={"has_fp8": has_fp8})
    made = resolve(TrainingRequest(**asked), QWEN3_8B, rows(), hardware)
    assert made.fp8 is is_used
    assert [reason in c.why for c in made.choices if c.name == "fp8"] == [True] * bool(reason)
