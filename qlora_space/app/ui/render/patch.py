"""What changed in a piece of HTML: a chart that got one more point is mostly the text that the browser has already.

stream.js takes the same text apart at the same places and puts it together again.
"""

import re

Change = tuple[
    int, int, int, str
]  # which part, from where, how much is dropped there, what is put there
_PART = re.compile(
    r"[<{][^<{]*|^[^<{]+"
)  # a tag with the text after it; an object within an attribute


def changes(old: str, new: str) -> list[Change] | None:
    """Changes that make `new` of `old`; None if `new` itself is as short. Places are counted in UTF-16 units."""
    before, after = _PART.findall(old), _PART.findall(new)
    if len(before) != len(after):
        return None
    pairs = enumerate(zip(before, after, strict=True))
    found = [_change(i, a, b) for i, (a, b) in pairs if a != b]
    return found if sum(len(change[3]) + 16 for change in found) < len(new) else None


def _change(index: int, old: str, new: str) -> Change:
    if not old.isascii() and max(old) > "\uffff":  # two units for one character: all of it
        return index, 0, len(old.encode("utf-16-le")) // 2, new
    start = _num_common(old, new)
    end = _num_common(old[start:][::-1], new[start:][::-1])
    return index, start, len(old) - start - end, new[start : len(new) - end]


def _num_common(one: str, other: str) -> int:
    """Length of the longest common beginning, by halving: long strings are compared as a whole."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
