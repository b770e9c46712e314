"""A stored plan stays readable, and two plans are compared by what differs."""

import json

from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, differences, resolve
from tests.plan.test_resolve import QWEN3_8B, gpu, rows


def planned(**requested: object) -> Plan:
    return resolve(TrainingRequest.model_validate(requested), QWEN3_8B, rows(), gpu(139))


def test_a_plan_json_of_an_older_version_is_read() -> None:
    plan = planned()
    older = plan.model_dump_json().replace('"step_kind":"fast"', '"step":"fast"')
    assert '"step":"fast"' in older
    assert Plan.model_validate_json(older) == plan
    by_weights = planned(bits=3, calibrated=False)
    older = by_weights.model_dump_json().replace('"calibrated":false', '"gptq":false')
    assert '"gptq":false' in older
    assert Plan.model_validate_json(older) == by_weights


def test_a_plan_json_without_the_least_needs_what_its_peak_says() -> None:
    older = json.loads(planned(bits=8).model_dump_json())
    del older["estimate"]["least_gib"]
    assert Plan.model_validate_json(json.dumps(older)) == planned(bits=8)


def test_only_settings_that_differ_are_compared() -> None:
    two = planned(seed=1, learning_rate=1e-3), planned(seed=1, learning_rate=2e-3)
    assert differences(two) == [("learning_rate", ("0.001", "0.002"))]
    assert differences([planned(), planned(name="another")]) == []
