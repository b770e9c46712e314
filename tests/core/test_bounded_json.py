"""JSON of strangers: what no real file has is refused in words."""

import json

import pytest

from qlora_space.core.bounded_json import Unreadable, parse_json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "two entries named 'a'"),
        ('{"a": ' + "9" * 400 + "}", "a number of 400 digits"),
        ('{"a": ' * 33 + "1" + "}" * 33, "nested more than 32 deep"),
        ("[" * 33 + "]" * 33, "nested more than 32 deep"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "[]," * 3_000_000 + "[]]", "lists and objects"),
    ],
)
def test_what_no_real_file_has_is_refused(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_json(text.encode("latin-1"), max_depth=32)


def test_all_else_is_what_json_says() -> None:
    value = {"a": [1, -2.5, None, True, "é"], "b": {"c": 10**30, "d": [[[[]]]]}, "e": 1e400}
    assert parse_json(json.dumps(value).encode(), max_depth=32) == value
    assert parse_json(b"[" * 32 + b"]" * 32, max_depth=32)
