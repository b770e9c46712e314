"""The commands `publish` and `demo-space`: what goes from a run to the Hub."""

import argparse
import dataclasses
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.commands import find_run
from qlora_space.app.cli.export import made_export
from qlora_space.app.exporting import export_folder
from qlora_space.core.export import EXPORT_FILE, ExportOptions
from qlora_space.core.parsing import parse_values
from qlora_space.hub import Published, suggested_repo
from qlora_space.hub.demo_space import demo_of
from qlora_space.runs import PushRequest


def publish(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    """The adapter, or an export, which is made first if the run has none of that format."""
    run = find_run(actions, options.run)
    if options.export:
        asked = ExportOptions(format=options.export)
        if not (export_folder(run, asked) / EXPORT_FILE).is_file():
            made_export(actions, run, asked)
    names = ("repo", "private", "for_16_bit", "with_base", "step", "replace")
    values = {name: getattr(options, name) for name in names}
    push = parse_values(PushRequest, {**values, "what": options.export or "adapter"})
    published = actions.publish(run, push)
    terminal.emit(f"Published: {published.url}")
    return _result(published)


def demo_space(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    """The user's own Space where base and adapter answer side by side."""
    run = find_run(actions, options.run)
    push = PushRequest(
        repo=options.repo or suggested_repo(actions.account(), run, "demo-space"),
        what="demo-space",
        private=options.private,
        hardware=options.hardware,
        replace=options.replace,
    )
    terminal.emit(demo_of(run, options.hardware).why)
    made = actions.publish(run, push)
    terminal.emit(f"Made: {made.url}. It builds for some minutes.")
    return _result(made)


def _result(published: Published) -> dict[str, Any]:
    for note in published.notes:
        terminal.emit(note)
    if published.stayed_private:
        terminal.emit("It is private: this token may not make it public. Do that on its page.")
    return dataclasses.asdict(published)
