"""How two answers differ: by words, and by how likely each token is without and with the adapter. Pure functions."""

import difflib
import math
import re
from collections.abc import Sequence

from qlora_space.app.ui.render.escaped import text
from qlora_space.core.comparison import PaneAnswer, TokenOdds
from qlora_space.core.wording import percent, visible

_PIECES = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
_MOST_PIECES = 3000  # a longer answer takes seconds to compare, and nobody reads its marks
_SAME_NATS, _CLEAR_NATS, _STRONG_NATS = 0.5, 1.5, 4.0
_CHANGES_SHOWN = 12
_CONTEXT_CHARS = 40


def differing(base: str, adapted: str) -> tuple[str, str]:
    """Both as markup: words that only the base has are deleted, those that only the adapted has are inserted."""
    left, right = _PIECES.findall(base), _PIECES.findall(adapted)
    if max(len(left), len(right)) > _MOST_PIECES:
        return text(base), text(adapted)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    parts = ["", ""]
    for kind, i, j, k, m in matcher.get_opcodes():
        is_same = kind == "equal"
        parts[0] += _marked("del", "".join(left[i:j]), is_same)
        parts[1] += _marked("ins", "".join(right[k:m]), is_same)
    return parts[0], parts[1]


def _marked(tag: str, words: str, is_same: bool) -> str:
    if not words or is_same:
        return text(words)
    return f"<{tag}>{text(words)}</{tag}>"


def odds(answer: PaneAnswer) -> str:
    """Each token shaded by how much likelier the adapter makes it; those where the base would write another one are
    underlined."""
    return "".join(_token(token) for token in answer.tokens) or text(answer.text)


def _token(token: TokenOdds) -> str:
    if not token.text:
        return ""
    css = f"odds {_shade(token.adapted - token.base)}" + (" changed" if token.rival else "")
    would = f" The base would write “{_short(token.rival)}”." if token.rival else ""
    title = f"Base {_chance(token.base)}, adapted {_chance(token.adapted)}.{would}"
    return f'<span class="{css}" title="{text(title)}">{text(token.text)}</span>'


def _shade(nats: float) -> str:
    size = abs(nats)
    if size <= _SAME_NATS:
        return "same"
    strength = 1 + (size > _CLEAR_NATS) + (size > _STRONG_NATS)
    return f"{'up' if nats > 0 else 'down'}-{strength}"


def changes_of_mind(answer: PaneAnswer, label: str) -> str:
    """The tokens at which the adapter chose another one than the base, the clearest first."""
    changed = [i for i, token in enumerate(answer.tokens) if token.rival]
    if not answer.tokens:
        return ""
    title = f"Where “{text(label)}” changed its mind"
    if not changed:
        return f'<p class="waiting">“{text(label)}”: the base would write the same, token by token.</p>'
    clearest = sorted(changed, key=lambda i: answer.tokens[i].base - answer.tokens[i].adapted)[
        :_CHANGES_SHOWN
    ]
    rows = "".join(_change(answer.tokens, i) for i in sorted(clearest))
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("After", "Base would write", "Adapted writes", "Base", "Adapted")
    )
    count = f"{len(changed)} of {len(answer.tokens)} tokens"
    return (
        f'<h3 class="changes-title">{title} <small>{count}</small></h3>'
        f'<div class="table-frame plain" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="changes"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _change(tokens: Sequence[TokenOdds], at: int) -> str:
    token = tokens[at]
    before = "".join(t.text for t in tokens[max(0, at - 12) : at])[-_CONTEXT_CHARS:]
    shown = (f"…{before}" if at else "(start)", token.rival, token.text)
    cells = "".join(f"<td>{text(_short(words))}</td>" for words in shown)
    return f"<tr>{cells}<td>{_chance(token.base)}</td><td>{_chance(token.adapted)}</td></tr>"


def _chance(log_prob: float) -> str:
    return percent(math.exp(min(log_prob, 0.0)))


def _short(words: str) -> str:
    """A token alone, its line ends as signs."""
    return visible(words).replace("\n", "↵")[: 2 * _CONTEXT_CHARS]
