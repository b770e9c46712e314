"""Which regular expressions of a tokenizer are taken: those whose shape cannot make a search take forever.

A backtracking engine tries every way to part a text between a repetition and the repetition around it: `(a+)+b` takes
twice as long with each letter. Those of real tokenizers repeat characters and classes, and groups of fixed length.
"""

import re

_MAX_CHARS = 4096  # the longest of a known tokenizer has about 600
_MAX_DEPTH = 8
_MAX_REPEATS = 1000
_GROUP = re.compile(r"\((\?(?:[imsx-]*:|[imsx-]+\)|=|!|>|<=|<!))?")
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_CLASS_PART = re.compile(r"\[:\^?\w+:\]|(\[\^?\]?)|(\])|\\.|[^\]\[\\]+", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[pP]\{\^?[\w &]+\}|x\{[0-9A-Fa-f]+\}|[^kg1-9])", re.DOTALL)


class _Shape:
    """A group while it is read."""

    def __init__(self) -> None:
        self.is_variable = False  # it has a repetition of no fixed number
        self.most_repeats = 1


def why_refused(pattern: str) -> str:
    """The end of a sentence that begins with the expression; '' if it is taken."""
    if len(pattern) > _MAX_CHARS:
        return f"is {len(pattern):,} characters long"
    try:
        _read(pattern)
    except _Refused as refused:
        return str(refused)
    return ""


class _Refused(Exception):
    """Why."""


def _read(pattern: str) -> None:
    at, open_groups, last = 0, [_Shape()], _Shape()
    while at < len(pattern):
        sign = pattern[at]
        if quantifier := _QUANTIFIER.match(pattern, at):
            at = _skip_mode(pattern, quantifier.end())
            _repeat(quantifier, last, open_groups[-1])
            last = _Shape()
        elif sign == "(":
            at = _open_group(pattern, at, open_groups)
            last = _Shape()
        elif sign == ")":
            at, last = at + 1, _close_group(open_groups)
        else:
            at, last = _skip_atom(pattern, at), _Shape()
    if len(open_groups) != 1:
        raise _Refused("has a group without an end")


def _open_group(pattern: str, at: int, open_groups: list[_Shape]) -> int:
    found = _GROUP.match(pattern, at)
    assert found
    if found[1] is None and pattern.startswith("(?", at):
        raise _Refused(f"has {pattern[at : at + 4]!r}, which no real one needs")
    if not (found[1] or "").endswith(")"):  # (?i) is no group
        open_groups.append(_Shape())
    if len(open_groups) > _MAX_DEPTH:
        raise _Refused(f"has groups nested more than {_MAX_DEPTH} deep")
    return found.end()


def _close_group(open_groups: list[_Shape]) -> _Shape:
    if len(open_groups) == 1:
        raise _Refused("closes a group that it did not open")
    closed = open_groups.pop()
    outer = open_groups[-1]
    outer.is_variable |= closed.is_variable
    outer.most_repeats = max(outer.most_repeats, closed.most_repeats)
    return closed


def _repeat(quantifier: re.Match[str], inner: _Shape, group: _Shape) -> None:
    """`inner` is what is repeated, `group` what it stands in."""
    least, most = _bounds(quantifier)
    if inner.is_variable and (most is None or most > 1):
        raise _Refused("repeats a repetition")
    repeats = inner.most_repeats * max(1, least, most or 0)
    if repeats > _MAX_REPEATS:
        raise _Refused(f"repeats {repeats:,} times")
    group.most_repeats = max(group.most_repeats, repeats)
    group.is_variable |= least != most and most != 1


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    """Fewest and most; None is no end."""
    signs: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if quantifier[0] in signs:
        return signs[quantifier[0]]
    least = int(quantifier[1][:9] or 0)
    if not quantifier[2]:
        return least, least
    return least, int(quantifier[3][:9]) if quantifier[3] else None


def _skip_mode(pattern: str, at: int) -> int:
    """Lazy or possessive. Raises if it repeats a repetition, as in `a{2}{3}`."""
    if pattern[at : at + 1] in ("?", "+") and pattern[at : at + 1]:
        at += 1
    if at < len(pattern) and _QUANTIFIER.match(pattern, at):
        raise _Refused("repeats a repetition")
    return at


def _skip_atom(pattern: str, at: int) -> int:
    sign = pattern[at]
    if sign == "[":
        return _skip_class(pattern, at)
    if sign != "\\":
        return at + 1
    found = _ESCAPE.match(pattern, at)
    if not found:
        raise _Refused(f"has {pattern[at : at + 4]!r}, which no real one needs")
    return found.end()


def _skip_class(pattern: str, at: int) -> int:
    """A class may hold classes: the expressions are Oniguruma's."""
    depth = 0
    while part := _CLASS_PART.match(pattern, at):
        at = part.end()
        depth += bool(part[1]) - bool(part[2])
        if not depth:
            return at
    raise _Refused("has a class without an end")
