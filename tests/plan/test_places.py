"""What a run costs and needs in each place, and which is chosen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.core.errors import OutOfMemory, RequestError
from qlora_space.core.facts import Hardware
from qlora_space.core.places import Flavor, PlaceOffer
from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, as_planned, cheapest, chosen_job, flavor, moved, offers, resolve
from tests.app.ui.fake import BASES, LAPTOP, inspection


def machine(name: str, gpu: str, gb: float, usd_per_hour: float, num_gpus: int = 1) -> Flavor:
    return flavor(
        name,
        f"{num_gpus}x {gpu}",
        gpu=gpu,
        num_gpus=num_gpus,
        gpu_gb=gb,
        cpu_cores=8,
        ram_gb=30,
        disk_gb=400,
        usd_per_hour=usd_per_hour,
    )


MACHINES = (
    machine("cpu-basic", "", 0, 0.01),
    machine("t4-small", "T4", 16, 0.40),
    machine("l4x1", "L4", 24, 0.80),
    machine("l40sx1", "L40S", 48, 1.80),
    machine("a100-large", "A100", 80, 2.50),
    machine("h200", "H200", 141, 5.00),
)


def planned(base: str, hardware: Hardware, **request: object) -> Plan:
    seen = inspection("alice/rows")
    facts = seen.dataset.model_copy(update={"sha": "2" * 40})
    asked = TrainingRequest(base=base, dataset="alice/rows", **request)  # type: ignore[arg-type]
    return resolve(asked, BASES[base], facts, hardware, columns=seen.mapping)


def offered(base: str, **request: object) -> tuple[TrainingRequest, tuple[PlaceOffer, ...]]:
    asked = TrainingRequest(base=base, dataset="alice/rows", **request)  # type: ignore[arg-type]
    of_run = {n: v for n, v in request.items() if n not in ("place", "flavor", "max_usd")}
    found = offers(
        asked, planned(base, LAPTOP, **of_run), MACHINES, lambda h: planned(base, h, **of_run)
    )
    return asked, found


def test_every_place_says_what_the_run_would_be_there() -> None:
    _, found = offered("Qwen/Qwen3-8B")
    assert found[0].kind == "here"
    assert [offer.kind for offer in found[1:]] == ["job"] * 5, "a CPU is offered by name only"
    by_name = {offer.flavor: offer for offer in found}
    assert by_name["h200"].fits
    assert by_name["h200"].seconds < by_name["l4x1"].seconds < found[0].seconds
    for offer in found[1:]:
        per_hour = offer.hardware.price_per_hour_usd
        assert offer.usd == pytest.approx(offer.seconds / 3600 * per_hour, abs=1e-3)
        assert offer.timeout_seconds > offer.seconds
        assert offer.most_usd > offer.usd


def test_the_cheapest_that_it_fits_on_is_chosen() -> None:
    asked, found = offered("Qwen/Qwen3-30B-A3B", place="job")
    chosen = chosen_job(asked, found)
    assert chosen.can_run
    assert chosen.usd <= min(o.usd for o in found if o.kind == "job" and o.can_run) + 0.005
    assert not next(o for o in found if o.flavor == "t4-small").fits
    assert cheapest(found[1:]) == chosen


def test_a_machine_may_be_named_also_one_without_a_gpu() -> None:
    asked, found = offered("demo", place="job", flavor="cpu-basic")
    assert chosen_job(asked, found).hardware.device == "cpu"
    asked, found = offered("demo", place="job", flavor="abacus")
    with pytest.raises(RequestError, match=r"'abacus', which HF Jobs does not offer.*l4x1"):
        chosen_job(asked, found)


def test_what_fits_nowhere_is_said_with_the_largest_machine() -> None:
    asked, found = offered("Qwen/Qwen3-235B", place="job", max_length=4096)
    fitting = [offer for offer in found if offer.fits]
    if fitting:  # the estimate says that one takes it
        pytest.skip("it fits")
    with pytest.raises(OutOfMemory, match="largest machine of HF Jobs"):
        chosen_job(asked, found)


@given(st.floats(0.01, 500))
def test_a_job_never_costs_more_than_its_cap(max_usd: float) -> None:
    _, found = offered("Qwen/Qwen3-8B", place="job", max_usd=max_usd)
    for offer in found[1:]:
        assert offer.most_usd <= max_usd + 1e-9
        assert offer.can_run <= (offer.usd <= max_usd)


def test_a_cap_below_the_price_is_refused_with_both() -> None:
    asked, found = offered("Qwen/Qwen3-8B", place="job", max_usd=0.02)
    with pytest.raises(RequestError, match=r"more than max_usd \(\$0\.02\)"):
        chosen_job(asked, found)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"bits": 3}, "4 bits or more"),
        ({"calibrated": True}, "4 bits or more"),
    ],
)
def test_what_does_not_go_through_a_copy_goes_into_no_job(
    request_: dict[str, object], why: str
) -> None:
    asked, found = offered("Qwen/Qwen3-8B", place="job", **request_)
    with pytest.raises(RequestError, match=why):
        chosen_job(asked, found)


def test_a_dataset_that_is_a_file_here_is_not_seen_by_a_job() -> None:
    seen = inspection("rows.jsonl").dataset.model_copy(update={"sha": "3" * 64})
    asked = TrainingRequest(base="demo", dataset="rows.jsonl", place="job")
    plan = resolve(asked, BASES["demo"], seen, LAPTOP)
    found = offers(asked, plan, MACHINES, lambda h: resolve(asked, BASES["demo"], seen, h))
    with pytest.raises(RequestError, match="a file on this machine"):
        chosen_job(asked, found)


@pytest.mark.parametrize("base", ["demo", "Qwen/Qwen3-8B"])
@pytest.mark.parametrize("there", [m.hardware for m in MACHINES[1:]], ids=lambda h: h.name)
def test_a_run_that_moves_learns_from_the_same_batches(base: str, there: Hardware) -> None:
    before = planned(base, LAPTOP)
    kept = as_planned(TrainingRequest(base=base, dataset="alice/rows"), before)
    planned_there = resolve(kept, before.base, before.dataset, there, columns=before.columns)
    for name in ("max_length", "per_device_train_batch_size", "gradient_accumulation_steps"):
        assert getattr(planned_there, name) == getattr(before, name), "so its memory is the run's"
    after = moved(before, planned_there)
    assert after.hardware == there
    of_the_machine = {"hardware", "estimate", "step_kind", "cpu_offload", "fp8"}
    of_the_machine |= {"gradient_checkpointing", "offer", "places"}
    same = before.model_dump(exclude=of_the_machine)
    assert {name: after.model_dump()[name] for name in same} == same
    assert after.estimate.steps == before.estimate.steps
    assert after.estimate.tokens == before.estimate.tokens


@pytest.mark.parametrize(
    ("gpu", "gb", "least", "most"),
    [("RTX Pro 6000", 96, 94, 96), ("A10G", 24, 22, 23), ("Z9000", 100, 80, 100)],
)
def test_memory_is_what_a_card_really_has(gpu: str, gb: float, least: float, most: float) -> None:
    for num_gpus in (1, 4):
        found = machine("x", gpu, gb * num_gpus, 1, num_gpus).hardware
        assert least < found.memory_gib < most
        assert found.free_gib < found.memory_gib
        assert found.num_gpus == num_gpus
