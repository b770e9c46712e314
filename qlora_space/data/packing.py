"""Puts documents into rows of `max_length` tokens, wasting little (best-fit decreasing)."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of documents, row by row; every document is in exactly one row.

    Longest first, each into the fullest row that still has room. The same lengths always give the
    same rows. Raises ValueError for a length below 1 or above `max_length`.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= max_length:
        raise ValueError(f"every length must be between 1 and {max_length}")
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


def waste_fraction(lengths: Sequence[int], rows: Sequence[Sequence[int]], max_length: int) -> float:
    """Share of positions that hold padding when every row is `max_length` long."""
    return 1 - sum(lengths) / (len(rows) * max_length) if rows else 0.0
