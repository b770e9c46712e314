"""Patches make the new piece of the old one, whatever they are."""

from hypothesis import example, given
from hypothesis import strategies as st

from qlora_space.app.ui.render.patch import _PART, changes

_TEXT = st.text(alphabet="<{ab😀é>")


def patched(old: str, new: str) -> str:
    found = changes(old, new)
    if found is None:
        return new
    parts = _PART.findall(old)
    for index, start, dropped, put in found:
        units = parts[index].encode("utf-16-le")
        parts[index] = (
            units[: 2 * start] + put.encode("utf-16-le") + units[2 * (start + dropped) :]
        ).decode("utf-16-le")
    return "".join(parts)


@given(_TEXT, _TEXT)
@example("<a>1", "<a>11")
@example("<a>aba", "<a>ababa")
@example("<a>😀x", "<a>😀😀x")
def test_a_patch_makes_the_new_of_the_old(old: str, new: str) -> None:
    assert patched(old, new) == new


@given(st.lists(_TEXT, min_size=1), st.integers(0), _TEXT)
def test_one_change_among_many_parts(texts: list[str], at: int, put: str) -> None:
    parts = [f"<i>{text.replace('<', '').replace('{', '')}" for text in texts]
    old = "".join(parts)
    parts[at % len(parts)] = f"<i>{put.replace('<', '').replace('{', '')}"
    assert patched(old, "".join(parts)) == "".join(parts)


def test_a_point_more_is_a_few_characters() -> None:
    old = f'<path d="M{"L".join(f"{x} {x}" for x in range(1000))}"/><b>12</b>'
    new = old.replace('"/>', 'L1000 7"/>').replace("<b>12", "<b>13")
    found = changes(old, new)
    assert found
    assert sum(len(text) for *_, text in found) <= 12
