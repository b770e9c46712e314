"""A link is a stranger's text: what can be right is filled in, everything else is left out and named."""

from urllib.parse import quote, urlencode

import pytest

from qlora_space.app.ui.links import MOST_PROMPT_CHARACTERS, Link, copy_link, link_of
from qlora_space.app.ui.navigation import Address, parse_address

HOSTILE = (
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    "a/b\nSet-Cookie: x",
    "a/b\x00",
    "../../etc/passwd",
    "a/b/c",
    "/home/alice/adapter",
    "owner/" + "x" * 5000,
    "own er/name",
    "owner/na--me",
    "${7*7}/{{7*7}}",
)
WHOLE = Link("bob/tea", "Qwen/Qwen3-0.6B", "v1.0", "Who?\n<b>é")


def test_a_link_round_trips_and_a_run_comes_before_it() -> None:
    assert parse_address(f"?{WHOLE}").link == WHOLE
    assert str(parse_address(str(WHOLE))) == str(WHOLE)
    assert WHOLE.checked() == (WHOLE, [])
    assert parse_address(f"run={'a' * 32}&{WHOLE}") == Address("a" * 32)
    assert parse_address("like=bob/tea").link == Link(like="bob/tea")
    assert not parse_address("like=bob/tea").link.is_comparison
    assert parse_address("").link == Link()


@pytest.mark.parametrize("name", ["adapter", "base", "like", "revision"])
def test_hostile_values_are_left_out_each_with_one_sentence(name: str) -> None:
    hostile = [h for h in HOSTILE if name != "revision" or h not in ("a/b/c", "owner/na--me")]
    for value in hostile:
        link, wrong = link_of({name: value}).checked()
        assert link == Link(), value
        (error,) = wrong
        assert str(error).startswith(name)
        assert "\n" not in str(error)
        assert len(str(error)) < 200


def test_a_prompt_is_text_of_a_bounded_length() -> None:
    prompt = "x" * MOST_PROMPT_CHARACTERS
    assert link_of({"prompt": prompt}).checked() == (Link(prompt=prompt), [])
    link, (error,) = link_of({"prompt": prompt + "xx"}).checked()
    assert link == Link()
    assert "longer than 4,000 characters" in str(error)
    assert link_of({"prompt": "a\x00\x1bb\r\n\tc<b>"}).prompt == "ab\n\tc<b>"
    assert len(str(link_of({"prompt": "y" * 10**6, "adapter": "z" * 10**6}))) < 5000


def test_the_button_that_copies_a_link_is_plain_markup() -> None:
    shown = copy_link(Link(adapter='a"><img src=x>', prompt="'"), "#p textarea")
    assert "<img" not in shown
    assert quote('a"><img', safe="") in shown
    assert urlencode({"adapter": "a/b"}) in copy_link(Link(adapter="a/b"))
