"""What a base's licence says of publishing an adapter that was trained on it, as far as its id tells.

An adapter is a work derived from its base. What an id does not tell is left to a person: terms are never guessed.
"""

import re
from dataclasses import dataclass
from typing import Literal

# Ids of the Hub: https://huggingface.co/docs/hub/repositories-licenses
_ALLOWING = re.compile(
    r"apache-2\.0|mit|isc|zlib|unlicense|wtfpl|ms-pl|ecl-2\.0|afl-3\.0|postgresql|ncsa|bsl-1\.0|artistic-2\.0"
    r"|bsd(-[23]-clause(-clear)?)?|cc0-1\.0|pddl|odc-by|cc-by-\d\.\d|cdla-permissive-[12]\.0"
)
_NO_CHANGES = re.compile(r"cc-by(-nc)?-nd-.*")
_NOT_COMMERCIAL = re.compile(r".*\bnc\b.*|.*non-?commercial.*")
_UNSTATED = ("", "unknown", "none")


@dataclass(frozen=True)
class Terms:
    """asks: it has conditions that a person must read. unknown: nothing is stated."""

    kind: Literal["allows", "asks", "unknown"]
    text: str


def terms_of(license: str) -> Terms:
    """Of a licence by its id on the Hub, such as "apache-2.0"; '' where the base states none."""
    name = license.strip().lower()
    if name in _UNSTATED:
        return Terms("unknown", "The base states no licence: ask its authors before you publish")
    if _ALLOWING.fullmatch(name):
        return Terms("allows", f"The licence of the base allows it: {name}")
    if _NO_CHANGES.fullmatch(name):
        what = "allows no changed versions, and an adapter may be one"
    elif _NOT_COMMERCIAL.fullmatch(name):
        what = "allows no commercial use, which holds for the adapter as well"
    else:
        what = "has conditions: read them before you publish"
    shown = "of its own" if name == "other" else f"{name[:60]}"
    return Terms("asks", f"The licence of the base ({shown}) {what}")
