"""What would let a run fit that does not: every change that is named does, alone."""

import pytest

from qlora_space.core.request import TrainingRequest
from qlora_space.plan import ladder, least_gib_at
from qlora_space.plan.batch_size import SAFETY
from tests.app.ui.fake import LAPTOP
from tests.plan.test_places import planned


@pytest.mark.parametrize("free_gib", [6, 9, 14, 20, 60, 200])
@pytest.mark.parametrize("base", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"])
def test_every_change_alone_lets_the_run_fit(base: str, free_gib: float) -> None:
    here = LAPTOP.model_copy(update={"free_gib": free_gib})
    request = TrainingRequest(base=base, dataset="alice/rows", bits=16)
    plan = planned(base, here, bits=16)
    found = ladder(request, plan)
    assert not (found and plan.estimate.fits)
    for change, label in found:
        value: object = int(change.value)
        changed = request.model_copy(update={change.field: value})
        needed = least_gib_at(changed, plan)
        assert needed is not None
        assert needed <= free_gib * SAFETY
        assert "GiB" in label or "MiB" in label


def test_the_change_that_costs_least_is_named() -> None:
    plan = planned("Qwen/Qwen3-8B", LAPTOP.model_copy(update={"free_gib": 9.0}), bits=16)
    assert not plan.estimate.fits
    (bits,) = [c for c, _ in ladder(TrainingRequest(bits=16), plan) if c.field == "bits"]
    fewer = [8, 4, 3, 2]
    more = fewer[: fewer.index(int(bits.value))]
    for width in more:
        needed = least_gib_at(TrainingRequest(bits=width), plan)  # type: ignore[arg-type]
        assert needed is None or needed > plan.hardware.free_gib * SAFETY
