"""Links that open the page filled in: `?adapter=&base=&revision=&prompt=` a comparison, `?like=` a new run.

Whoever wrote one is a stranger: a wrong value is left out and named, and a link starts nothing.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from qlora_space.app.ui.render.html import icon, text
from qlora_space.core.errors import RequestError
from qlora_space.hub import is_repo_name
from qlora_space.runs import Publication

_FIELDS = ("adapter", "base", "revision", "prompt", "like")
_MOST_NAME_CHARACTERS, MOST_PROMPT_CHARACTERS = 200, 4000
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


@dataclass(frozen=True)
class Link:
    """What an address asks for, as it stands there and cut to a bounded length; '' is not asked for."""

    adapter: str = ""
    base: str = ""
    revision: str = ""
    prompt: str = ""
    like: str = ""

    @property
    def is_comparison(self) -> bool:
        return bool(self.adapter or self.base or self.revision or self.prompt)

    def __str__(self) -> str:
        return urlencode({name: value for name in _FIELDS if (value := getattr(self, name))})

    def checked(self) -> tuple["Link", list[RequestError]]:
        """The values that can be right, and a sentence for each other one."""
        wrong = [error for name in _FIELDS if (error := _problem(name, getattr(self, name)))]
        kept = {n: getattr(self, n) for n in _FIELDS if not _problem(n, getattr(self, n))}
        return Link(**kept), wrong


def link_of(values: Mapping[str, str]) -> Link:
    """Of the query of an address, by name."""
    cut = {name: values.get(name, "")[: _MOST_NAME_CHARACTERS + 1] for name in _FIELDS}
    return Link(**cut | {"prompt": _plain(values.get("prompt", "")[: MOST_PROMPT_CHARACTERS + 1])})


def _plain(prompt: str) -> str:
    """Without control characters; lines stay."""
    kept = (c for c in prompt if c in "\n\t" or unicodedata.category(c) != "Cc")
    return "".join(kept)


def _problem(name: str, value: str) -> RequestError | None:
    if not value:
        return None
    match name:
        case "prompt":
            if len(value) <= MOST_PROMPT_CHARACTERS:
                return None
            what = f"prompt is longer than {MOST_PROMPT_CHARACTERS:,} characters."
            return RequestError(what, "Write a shorter one.")
        case "revision":
            if _REVISION.fullmatch(value) and ".." not in value:
                return None
            return _wrong(name, value, "is no branch, tag or commit")
        case "base" if value == "demo":
            return None
        case _:
            return None if is_repo_name(value) else _wrong(name, value, "is no name on the Hub")


def _wrong(name: str, value: str, why: str) -> RequestError:
    hint = "Take the link again." if name == "revision" else "Write owner/name."
    return RequestError(f"{name} {value[:60]!r} {why}.", hint)


def copy_link(link: Link, prompt_from: str = "") -> str:
    """A button that copies the whole address; `prompt_from`: selector of the box with the prompt, if there is one."""
    box = f' data-prompt-from="{text(prompt_from)}"' if prompt_from else ""
    return (
        f'<button type="button" class="copy" data-copy-link="?{text(str(link))}"{box} '
        f'title="It opens this comparison, filled in, for whoever may read the adapter">{icon("copy")}'
        "<span>Copy link</span></button>"
    )


def link_to(publication: Publication) -> Link:
    """To a comparison of what was published, at its commit."""
    return Link(adapter=publication.repo, revision=publication.commit)
