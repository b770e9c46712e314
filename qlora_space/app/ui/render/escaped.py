"""Untrusted text as markup that shows it: nothing in it is markup, and nothing in it is hidden."""

import html

from qlora_space.core.wording import visible


def text(value: object) -> str:
    """For element content and for quoted attributes that a person reads."""
    return exact(visible(str(value)))


def exact(value: object) -> str:
    """For quoted attributes that come back, character by character: the value of a choice."""
    return html.escape(str(value), quote=True)
