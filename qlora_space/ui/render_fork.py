"""What differs between a run and the one that it was made from."""

from collections.abc import Sequence

from qlora_space.ui.form import LABELS
from qlora_space.ui.render import table, text


def fork(origin: str, changes: Sequence[tuple[str, str, str]]) -> str:
    """A sentence, and a table of the settings that differ."""
    if not changes:
        return f'<p class="fork">Made from “{text(origin)}”, with the same settings.</p>'
    rows = [(LABELS.get(field, field.replace("_", " ")), old, new) for field, old, new in changes]
    columns = ("Changed", origin, "This run")
    return (
        f'<section class="fork"><p>Made from “{text(origin)}”.</p>'
        f"{table(columns, rows, 'What was changed')}</section>"
    )
