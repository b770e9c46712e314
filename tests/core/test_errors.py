import pickle

import pytest

from qlora_space.core import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.QloraSpaceError)
]


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_error_prints_what_is_wrong_and_what_to_do(
    error_class: type[errors.QloraSpaceError],
) -> None:
    assert str(error_class("r is 0.", "Use 1 or more.")) == "r is 0. Use 1 or more."


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_error_survives_the_way_to_another_process(
    error_class: type[errors.QloraSpaceError],
) -> None:
    copy = pickle.loads(pickle.dumps(error_class("what", "hint")))
    assert type(copy) is error_class
    assert (copy.what, copy.hint) == ("what", "hint")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Bad shape.\nTraceback of a library"), "Bad shape"),
        (ValueError("  \n"), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_of_a_librarys_error_only_the_first_line_is_quoted(error: Exception, line: str) -> None:
    assert errors.first_line(error) == line
