"""What all scores do with text first."""

import re

MAX_CHARS = 20_000  # an answer of 512 tokens has about 2,000
_FENCE = re.compile(r"```[ \t]*([A-Za-z0-9_+-]{0,20})[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def bounded(text: str) -> str:
    """The first MAX_CHARS characters, without space around them."""
    return text[:MAX_CHARS].strip()


def fenced(text: str) -> tuple[str, str]:
    """(language, content) of the first Markdown code block; ('', the whole text) where there is none."""
    text = bounded(text)
    found = _FENCE.search(text)
    return (found[1].lower(), found[2]) if found else ("", text)
