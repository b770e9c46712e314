"""What a tab may choose to see."""

import pytest

from qlora_space.app.ui.pieces import ViewOptions, parse_steps, parse_view_options
from qlora_space.core.errors import RequestError


@pytest.mark.parametrize(
    ("written", "steps"),
    [("100-200", (100, 200)), (" 3 to 9 ", (3, 9)), ("", None), ("9-3", None), ("a-b", None)],
)
def test_the_steps_that_are_shown_can_be_typed(written: str, steps: tuple[int, int] | None) -> None:
    assert parse_steps(written) == steps


def test_options_come_from_the_address() -> None:
    assert parse_view_options({}) == ViewOptions()
    query = {"smooth": "0", "log": "1", "steps": "3-9", "at": "7", "others": "a" * 32}
    assert parse_view_options(query) == ViewOptions(False, True, (3, 9), 7, ("a" * 32,))


def test_more_runs_than_are_compared_are_refused() -> None:
    with pytest.raises(RequestError):
        parse_view_options({"others": ",".join(["a" * 32] * 5)})
