"""Untrusted text inside markdown stays text: no markup, link, HTML, math or new table row comes of it."""

import re
import unicodedata

_MARKUP = frozenset("&<>\"'|`*_[](){}#~\\!$@:=+^")
_MAX_CELL_CHARACTERS = 300
_KEPT_CONTROLS = "\n\t"


def inline(text: str) -> str:
    """For a table cell or a sentence: one line, shortened, with markup as entities."""
    line = " ".join(_visible(text).split())
    if len(line) > _MAX_CELL_CHARACTERS:
        line = line[: _MAX_CELL_CHARACTERS - 1] + "…"
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in line).replace("www.", "www&#46;")


def block(text: str) -> str:
    """For longer text: a code block with a longer fence than any in the text."""
    shown = _visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def _visible(text: str) -> str:
    """Without control and direction characters, which can make text look like other text."""
    kept = (c for c in text if c in _KEPT_CONTROLS or unicodedata.category(c) not in ("Cc", "Cf"))
    return "".join(kept)
