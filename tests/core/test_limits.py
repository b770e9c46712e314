import pytest

from qlora_space.core.errors import RequestError
from qlora_space.core.limits import Limits, limits_from


def test_limits_are_read_from_the_environment() -> None:
    assert limits_from({}) == Limits()
    given = {"QLORA_SPACE_LIVE_RUNS": "5", "QLORA_SPACE_UPLOAD_GIB": "0.5", "OTHER": "x"}
    assert limits_from(given) == Limits(live_runs=5, upload_gib=0.5)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_value_that_cannot_be_is_named(value: str) -> None:
    with pytest.raises(RequestError, match=r"QLORA_SPACE_LIVE_RUNS is '"):
        limits_from({"QLORA_SPACE_LIVE_RUNS": value})
