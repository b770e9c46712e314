"""Puts documents into rows of `max_length` tokens, wasting little."""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Sequence

_GOOD_ENOUGH = 1.005  # rows, to the fewest that could hold the tokens
# How many lengths are tried together to fill a row: a bit for each token of the row and each of them.
_SEARCH_BITS = 2**20

Shape = Counter[int]
"""How many documents of each length are in a row."""


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of documents, row by row; every document is in exactly one row.

    Best-fit decreasing; where that wastes much, because no document is short, also a search for sums
    that fill a row, and the better of the two. The same lengths always give the same rows. Raises
    ValueError for a length below 1 or above `max_length`.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= max_length:
        raise ValueError(f"every length must be between 1 and {max_length}")
    rows = _best_fit(lengths, max_length)
    if len(rows) * max_length > _GOOD_ENOUGH * sum(lengths) + max_length:
        searched = _searched(lengths, max_length)
        rows = min(rows, searched, key=len)
    return rows


def _best_fit(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Longest first, each into the fullest row that still has room."""
    rows: list[list[int]] = []
    rows_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the distinct keys of rows_by_space, sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = len(rows), max_length
            rows.append([])
        else:
            space = spaces[at]
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                del rows_by_space[space], spaces[at]
        rows[row].append(index)
        left = space - length
        if left not in rows_by_space:
            rows_by_space[left] = []
            insort(spaces, left)
        rows_by_space[left].append(row)
    return rows


def _searched(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Row by row: the longest document that is left, and those of all others that fill the row best."""
    waiting: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        waiting.setdefault(lengths[index], []).append(index)
    rows: list[list[int]] = []
    distinct = sorted(waiting)
    while distinct:
        shape = _fullest(distinct, lambda length: len(waiting[length]), max_length)
        # The same lengths again while they last: so there are no more searches than lengths.
        for _ in range(min(len(waiting[length]) // times for length, times in shape.items())):
            rows.append([waiting[length].pop() for length in shape.elements()])
        for length in shape:
            if not waiting[length]:
                del distinct[bisect_left(distinct, length)]
    return rows


def _fullest(distinct: Sequence[int], count: Callable[[int], int], max_length: int) -> Shape:
    shape = Shape([distinct[-1]])
    space = max_length - distinct[-1]
    fitting = bisect_right(distinct, space)
    step = 1 + fitting * max_length // _SEARCH_BITS
    candidates = (distinct[at] for at in range(fitting - 1, -1, -step))
    left = [(n, min(count(n) - shape[n], space // n)) for n in candidates]
    shape.update(_best_sum(left, space))
    space = max_length - sum(length * times for length, times in shape.items())
    # What the search passed over may fit still.
    for length in reversed(distinct[: bisect_right(distinct, space)]):
        more = min(count(length) - shape[length], space // length)
        if more:
            shape[length] += more
            space -= length * more
    return shape


def _best_sum(left: Sequence[tuple[int, int]], space: int) -> Shape:
    """Of (length, count), long ones first, those that come nearest to `space` together.

    Bit n of `sums` says that some of them have n tokens together.
    """
    sums, mask = 1, (1 << space + 1) - 1
    tried: list[tuple[int, int]] = []
    for length, most in left:
        for _ in range(most):
            tried.append((length, sums))
            sums |= sums << length & mask
        if sums >> space:
            break
    best = sums.bit_length() - 1
    chosen = Shape()
    for length, before in reversed(tried):
        if not before >> best & 1:
            chosen[length] += 1
            best -= length
    return chosen


def waste_fraction(lengths: Sequence[int], rows: Sequence[Sequence[int]], max_length: int) -> float:
    """Share of positions that hold padding when every row is `max_length` long."""
    return 1 - sum(lengths) / (len(rows) * max_length) if rows else 0.0
