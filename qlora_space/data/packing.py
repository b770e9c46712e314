"""Packs documents into rows of `max_length` tokens with little padding.

Our own best-fit, not trl's (`pack_dataset`): trl's packs batches of 1,000 rows, moves the tokens themselves
and breaks ties differently, and it needs torch; here all documents are packed together, by length alone.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Sequence

_GOOD_ENOUGH = 1.005  # rows, relative to the fewest that could hold the tokens
# Limits how many lengths are tried to fill a row: one bit for each pair of a length and a token of the row.
_SEARCH_BITS = 2**20

LengthCounts = Counter[int]
"""How many documents of each length are in a row."""


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of documents, row by row; every document is in exactly one row.

    Best-fit decreasing; where that wastes much, because no document is short, also a search for lengths
    whose sum fills a row (subset sum), and the better of the two. The same lengths always give the same rows. Raises
    ValueError for a length below 1 or above `max_length`.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= max_length:
        raise ValueError(f"every length must be between 1 and {max_length}")
    rows = _best_fit(lengths, max_length)
    if len(rows) * max_length > _GOOD_ENOUGH * sum(lengths) + max_length:
        searched = _subset_sums(lengths, max_length)
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


def _subset_sums(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Row by row: the longest document that is left, and those of the others that fill the row best."""
    unpacked: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        unpacked.setdefault(lengths[index], []).append(index)
    rows: list[list[int]] = []
    distinct = sorted(unpacked)
    while distinct:
        counts = _fullest_row(distinct, lambda length: len(unpacked[length]), max_length)
        # Repeat these lengths while they last, so that there are no more searches than lengths.
        for _ in range(min(len(unpacked[length]) // times for length, times in counts.items())):
            rows.append([unpacked[length].pop() for length in counts.elements()])
        for length in counts:
            if not unpacked[length]:
                del distinct[bisect_left(distinct, length)]
    return rows


def _fullest_row(
    distinct: Sequence[int], count: Callable[[int], int], max_length: int
) -> LengthCounts:
    counts = LengthCounts([distinct[-1]])
    space = max_length - distinct[-1]
    fitting = bisect_right(distinct, space)
    step = 1 + fitting * max_length // _SEARCH_BITS
    candidates = (distinct[at] for at in range(fitting - 1, -1, -step))
    left = [(n, min(count(n) - counts[n], space // n)) for n in candidates]
    counts.update(_best_sum(left, space))
    space = max_length - sum(length * times for length, times in counts.items())
    # What the search skipped may still fit.
    for length in reversed(distinct[: bisect_right(distinct, space)]):
        more = min(count(length) - counts[length], space // length)
        if more:
            counts[length] += more
            space -= length * more
    return counts


def _best_sum(left: Sequence[tuple[int, int]], space: int) -> LengthCounts:
    """Of (length, count), longest first, those whose sum comes nearest to `space` (subset sum)."""
    # Bit n of `sums` is set if some of the lengths add up to n.
    sums, mask = 1, (1 << space + 1) - 1
    tried: list[tuple[int, int]] = []
    for length, most in left:
        for _ in range(most):
            tried.append((length, sums))
            sums |= sums << length & mask
        if sums >> space:
            break
    best = sums.bit_length() - 1
    chosen = LengthCounts()
    for length, before in reversed(tried):
        if not before >> best & 1:
            chosen[length] += 1
            best -= length
    return chosen


def waste_fraction(lengths: Sequence[int], rows: Sequence[Sequence[int]], max_length: int) -> float:
    """Fraction of positions that are padding when every row is `max_length` long."""
    return 1 - sum(lengths) / (len(rows) * max_length) if rows else 0.0
