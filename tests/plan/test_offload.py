"""CPU offload: the packed weights stay on a GPU that holds them; else they lie in host memory, if it holds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, resolve
from tests.plan.test_resolve import QWEN3_8B, gpu, rows


def planned(free_gib: float, host_free_gib: float, **asked: object) -> Plan:
    hardware = gpu(free_gib).model_copy(update={"host_free_gib": host_free_gib})
    return resolve(TrainingRequest(**asked), QWEN3_8B, rows(), hardware)  # type: ignore[arg-type]


def test_a_base_stays_on_a_gpu_that_holds_it() -> None:
    assert not planned(24, 64).cpu_offload


def test_a_base_that_does_not_fit_lies_in_host_memory_and_then_fits() -> None:
    assert not planned(5, 0).estimate.fits
    plan = planned(5, 64)
    assert plan.cpu_offload
    assert plan.estimate.fits
    (choice,) = [c for c in plan.choices if c.name == "cpu_offload"]
    assert "host memory" in choice.why


@pytest.mark.parametrize("host_free_gib", [0, 3])
def test_not_where_the_host_has_no_room_either(host_free_gib: float) -> None:
    assert not planned(5, host_free_gib).cpu_offload


@pytest.mark.parametrize("asked", [{"bits": 16}, {"bits": 2}, {"lora_dropout": 0.1}])
def test_not_for_bases_that_cannot_be_offloaded(asked: dict) -> None:
    assert not planned(5, 64, **asked).cpu_offload


def test_as_many_gpus_as_the_host_has_room_for_copies() -> None:
    for host_free_gib, num_processes in ((6, 1), (9, 2), (99, 4)):
        many = {"host_free_gib": host_free_gib, "num_gpus": 4}
        plan = resolve(TrainingRequest(), QWEN3_8B, rows(50_000), gpu(5).model_copy(update=many))
        assert plan.cpu_offload
        assert plan.num_processes == num_processes


def test_a_gpu_that_is_busy_for_the_moment_does_not_offload() -> None:
    busy = gpu(24).model_copy(update={"free_gib": 5, "host_free_gib": 64})
    plan = resolve(TrainingRequest(), QWEN3_8B, rows(), busy)
    assert not plan.cpu_offload
    assert not plan.estimate.fits


def test_rows_that_are_too_many_at_once_do_not_move_the_base() -> None:
    asked = {"per_device_train_batch_size": 400, "max_length": 4096}
    assert not planned(24, 64, **asked).cpu_offload


@given(free_gib=st.floats(2, 140), host_free_gib=st.floats(0, 200))
def test_host_memory_is_taken_only_where_it_makes_the_difference(
    free_gib: float, host_free_gib: float
) -> None:
    if planned(free_gib, host_free_gib).cpu_offload:
        assert not planned(
            free_gib, 0, per_device_train_batch_size=1, optim="paged_adamw_8bit"
        ).estimate.fits
        assert planned(free_gib, host_free_gib).estimate.fits


def test_weights_take_time_on_the_bus() -> None:
    here, there = planned(24, 0, max_length=128), planned(4.5, 64, max_length=128)
    assert there.cpu_offload
    rows_here = here.per_device_train_batch_size * here.gradient_accumulation_steps
    rows_there = there.per_device_train_batch_size * there.gradient_accumulation_steps
    per_row = [
        plan.estimate.seconds / plan.estimate.steps / count
        for plan, count in ((here, rows_here), (there, rows_there))
    ]
    assert per_row[1] > per_row[0]
