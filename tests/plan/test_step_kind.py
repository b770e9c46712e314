"""Which runs take the fast step, and the reason in the plans of those that do not."""

import pytest

from qlora_space.core.request import TrainingRequest
from qlora_space.plan import resolve
from tests.plan.test_resolve import QWEN3_8B, gpu, rows


def plan(request: TrainingRequest, base=QWEN3_8B, free_gib: float = 139):
    return resolve(request, base, rows(), gpu(free_gib))


def why(plan) -> str:
    return next(c.why for c in plan.choices if c.name == "step_kind")


def test_a_known_base_at_four_bits_on_a_gpu_is_trained_fast() -> None:
    assert plan(TrainingRequest()).step_kind == "fast"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"bits": 8}, "4 bits and fewer"),
        ({"lora_dropout": 0.1}, "dropout"),
        ({"r": 128}, "ranks up to 64"),
    ],
)
def test_what_the_fast_step_cannot_do_is_plain_with_the_reason(asked: dict, reason: str) -> None:
    made = plan(TrainingRequest(**asked))
    assert made.step_kind == "plain"
    assert reason in why(made)


def test_an_unknown_architecture_is_named() -> None:
    base = QWEN3_8B.model_copy(update={"model_type": "mamba", "architecture": "MambaForCausalLM"})
    assert "MambaForCausalLM" in why(plan(TrainingRequest(), base))


def test_a_fast_plan_asks_for_less_memory_and_less_time_than_a_plain_one() -> None:
    fast, slow = (
        plan(TrainingRequest(lora_dropout=d, per_device_train_batch_size=4, gradient_checkpointing=True))
        for d in (0.0, 0.1)
    )  # fmt: skip
    assert fast.estimate.least_gib < slow.estimate.peak_gib
    assert fast.estimate.seconds < slow.estimate.seconds


def test_eight_bit_states_are_for_cards_that_need_them() -> None:
    assert plan(TrainingRequest()).optim == "adamw_torch"
    assert plan(TrainingRequest(), free_gib=7.2).optim == "paged_adamw_8bit"


@pytest.mark.parametrize(
    ("has_fp8", "asked", "is_used", "reason"),
    [
        (True, {"fp8": True}, True, ""),
        (True, {}, False, ""),
        (False, {"fp8": True}, False, "this hardware has no FP8"),
        (True, {"fp8": True, "bits": 8}, False, "only the fast step"),
    ],
)
def test_fp8_is_used_where_it_is_requested_and_possible(has_fp8, asked, is_used, reason) -> None:
    hardware = gpu(139).model_copy(update={"has_fp8": has_fp8})
    made = resolve(TrainingRequest(**asked), QWEN3_8B, rows(), hardware)
    assert made.fp8 is is_used
    assert [reason in c.why for c in made.choices if c.name == "fp8"] == [True] * bool(reason)


def on(num_gpus: int, num_rows: int = 50_000, **asked: object):
    hardware = gpu(139).model_copy(update={"num_gpus": num_gpus})
    return resolve(TrainingRequest.model_validate(asked), QWEN3_8B, rows(num_rows), hardware)


def rows_an_update(plan) -> int:
    on_one = plan.per_device_train_batch_size * plan.gradient_accumulation_steps
    return on_one * plan.num_processes


def why_so_many(plan) -> list[str]:
    return [c.why for c in plan.choices if c.name == "num_processes"]


@pytest.mark.parametrize("asked", [{}, {"per_device_train_batch_size": 2}])
@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_more_gpus_make_the_same_updates_in_less_time(num_gpus: int, asked: dict) -> None:
    one, many = on(1, **asked), on(num_gpus, **asked)
    assert (one.num_processes, many.num_processes) == (1, num_gpus)
    assert rows_an_update(many) == rows_an_update(one) == 16
    assert many.estimate.steps == one.estimate.steps
    assert many.estimate.tokens == one.estimate.tokens
    assert many.estimate.seconds < one.estimate.seconds
    assert many.estimate.least_gib <= one.estimate.peak_gib
    assert why_so_many(many) == ["all of this kind that are free"]
    assert not why_so_many(one)


def test_requested_rows_and_batches_are_those_of_every_gpu() -> None:
    asked = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}
    one, two = on(1, **asked), on(2, **asked)
    assert rows_an_update(two) == 2 * rows_an_update(one) == 30
    assert two.estimate.tokens == pytest.approx(one.estimate.tokens, rel=0.05)  # the same epochs


@pytest.mark.parametrize(
    ("num_gpus", "asked", "used", "reason"),
    [
        (4, {"num_processes": 2}, 2, ""),
        (1, {"num_processes": 1}, 1, ""),
        (2, {"num_processes": 8}, 2, "8 were asked for"),
        (1, {"num_processes": 2}, 1, "2 were asked for"),
        (2, {"bits": 8}, 1, "only the fast step is shared"),
        (2, {"bits": 8, "num_processes": 2}, 1, "only the fast step is shared"),
    ],
)
def test_gpus_that_cannot_help_are_left_out_with_the_reason(
    num_gpus: int, asked: dict, used: int, reason: str
) -> None:
    made = on(num_gpus, **asked)
    assert made.num_processes == used
    assert [reason in why for why in why_so_many(made)] == [True] * bool(reason)


def test_an_update_of_few_rows_takes_no_more_gpus_than_it_has_rows() -> None:
    made = on(8, num_rows=500, packing=False)
    assert made.num_processes == rows_an_update(made) < 8
    assert "would not make an update" in why_so_many(made)[0]


def test_gpus_that_would_not_make_an_update_faster_are_left_out_so_that_its_rows_stay_near() -> (
    None
):
    """Rows an update are rounded up to the same number on every GPU."""
    made = [on(n, num_rows=5_000) for n in (1, 2, 4, 8)]
    assert [rows_an_update(plan) for plan in made] == [9, 10, 9, 10]
    assert [plan.num_processes for plan in made] == [1, 2, 3, 5]
    asked = on(8, num_rows=5_000, num_processes=8)
    assert rows_an_update(asked) == 16
