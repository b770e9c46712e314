"""The command `export`: a run as one model in a folder."""

import argparse
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.commands import find_run
from qlora_space.app.cli.flags import given
from qlora_space.app.exporting import export
from qlora_space.core.export import Exported, Exporting, ExportOptions
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import num_bytes


def export_to_folder(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    """Print progress, what was written, and how far it is from the adapter."""
    run = find_run(actions, options.run)
    chosen = parse_values(ExportOptions, given(options, ExportOptions))
    said, done = "", None
    for reply in export(actions, run, chosen, options.to):
        if isinstance(reply, Exported):
            done = reply
        elif isinstance(reply, Exporting) and reply.text != said:
            terminal.emit(reply.text)
            said = reply.text
    assert done is not None
    terminal.emit(f"{options.to}: {len(done.files)} files, {num_bytes(done.num_bytes)}.")
    terminal.emit(done.in_words())
    return {"folder": str(options.to), **done.model_dump(mode="json")}
