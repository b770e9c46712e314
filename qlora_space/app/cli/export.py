"""The command `export`: a run as one model in a folder."""

import argparse
from pathlib import Path
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.commands import find_run
from qlora_space.app.cli.flags import given
from qlora_space.app.exporting import export
from qlora_space.core.export import Exported, Exporting, ExportOptions
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import num_bytes
from qlora_space.runs import RunFolder


def export_to_folder(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    """Print progress, what was written, and how far it is from the adapter."""
    run = find_run(actions, options.run)
    chosen = parse_values(ExportOptions, given(options, ExportOptions))
    done = made_export(actions, run, chosen, options.to)
    terminal.emit(f"{options.to}: {len(done.files)} files, {num_bytes(done.num_bytes)}.")
    terminal.emit(done.in_words())
    return {"folder": str(options.to), **done.model_dump(mode="json")}


def made_export(
    actions: Actions, run: RunFolder, chosen: ExportOptions, folder: Path | None = None
) -> Exported:
    """In `folder`, or kept with the run; prints progress."""
    said, done = "", None
    for reply in export(actions, run, chosen, folder):
        if isinstance(reply, Exported):
            done = reply
        elif isinstance(reply, Exporting) and reply.text != said:
            terminal.emit(reply.text)
            said = reply.text
    assert done is not None
    return done
