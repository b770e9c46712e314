"""JSON from strangers: as large, deep and wide as real files are, and not more."""

import json
from typing import Any

_MAX_CONTAINERS = 2**21  # the merges of the largest tokenizers are half a million lists
_MAX_DIGITS = 40  # transformers writes 10^30 for "no limit"


class Unreadable(ValueError):
    """Why it is not read: the end of a sentence that begins with the file's name."""


def parse_json(content: bytes, max_depth: int) -> Any:
    """The value, nested at most `max_depth` deep. Raises Unreadable."""
    value = parse_shallow_json(content)
    if is_deeper_than(value, max_depth):
        raise Unreadable(f"is nested more than {max_depth} deep")
    return value


def parse_shallow_json(content: bytes) -> Any:
    """As parse_json, for a caller who checks every level.

    Raises Unreadable, for two entries of one name too: which of them another reader takes is its own affair.
    """
    if (amount := content.count(b"[") + content.count(b"{")) > _MAX_CONTAINERS:
        raise Unreadable(f"has {amount:,} lists and objects")
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_int=_short_int)
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except Unreadable:
        raise
    except ValueError:
        raise Unreadable("is not JSON") from None


def is_deeper_than(value: Any, max_depth: int) -> bool:
    """Level by level, so that any depth can be reported."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise Unreadable(f"has two entries named {twice[:40]!r}")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Unreadable(f"has a number of {len(digits)} digits")
    return int(digits)
