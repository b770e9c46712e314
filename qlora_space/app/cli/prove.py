"""The command `prove`: what was published, downloaded again and compared."""

import argparse
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.commands import RunFailed, find_run
from qlora_space.app.proving import prove
from qlora_space.core.export import Exporting
from qlora_space.core.proof import Proof

_MISMATCH = 2


def prove_published(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    """Raises RunFailed for a mismatch."""
    found: Proof | None = None
    for reply in prove(actions, find_run(actions, options.run)):
        if isinstance(reply, Exporting):
            terminal.emit(reply.text)
        else:
            found = reply
    assert found is not None
    terminal.emit(found.in_words())
    result = found.model_dump(mode="json") | {"is_proved": found.is_proved}
    if not found.is_proved:
        raise RunFailed(result, _MISMATCH)
    return result
