"""Exports of a person's runs: made in a process of their own, which ends with them."""

import time
from collections.abc import Iterator
from pathlib import Path

from qlora_space.app.actions import Actions
from qlora_space.app.room import check_free_disk
from qlora_space.core.atomic import whole_folder
from qlora_space.core.errors import RunError
from qlora_space.core.export import (
    EXPORT_FILE,
    RECIPES,
    Exported,
    ExportOptions,
    ExportReply,
    export_reply_adapter,
)
from qlora_space.places.service import Service
from qlora_space.runs import RunFolder
from qlora_space.runs.recipes import write_recipe

_SECONDS = 3600.0  # between two replies: a large base is downloaded first


def export(
    acting: Actions, run: RunFolder, options: ExportOptions, folder: Path | None = None
) -> Iterator[ExportReply]:
    """Progress, then the export, which is in `folder` or with the run. Raises QloraSpaceError.

    An export of the same kind is replaced when this one is whole. On a machine with one GPU it waits for nobody, so it
    is refused while a run trains.
    """
    run = acting.run(run.id)
    if options.format in RECIPES:
        yield _recipe(run, options, _target(run, options, folder))
        return
    if busy := acting.busy_name():
        raise RunError(f"{busy} has this machine now.", "Export when it is done.")
    if folder is None:
        check_free_disk(acting.hardware(), acting.settings.limits)
    target = _target(run, options, folder)
    exporter = Service("export", acting.settings.home / "logs", _SECONDS)
    message = {
        "run": str(run.path),
        "options": options.model_dump(mode="json"),
        "folder": str(target.absolute()),
        "token": acting.token,
    }
    try:
        for reply in exporter.ask(message):
            yield export_reply_adapter.validate_python(reply)
    finally:
        exporter.close()


def new_folder(folder: Path) -> Path:
    """The same, with the folders around it. Raises RunError if it holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty.", "Name a folder that is not there yet.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _target(run: RunFolder, options: ExportOptions, folder: Path | None) -> Path:
    """Raises RunError for a folder that holds something."""
    if folder:
        return new_folder(folder)
    run.exports_folder.mkdir(parents=True, exist_ok=True)
    return export_folder(run, options)


def _recipe(run: RunFolder, options: ExportOptions, target: Path) -> Exported:
    """Text and prepared tokens: no process is needed."""
    assert options.format in RECIPES
    with whole_folder(target, "The export") as part:
        write_recipe(run, options.format, part)
        files = sorted(part.iterdir())
        done = Exported(
            options=options,
            dtype="",
            num_bytes=sum(file.stat().st_size for file in files),
            files=tuple(file.name for file in files),
            why_not_measured="it is no model",
            time=time.time(),
        )
        (part / EXPORT_FILE).write_text(done.model_dump_json(indent=1))
    return done


def export_folder(run: RunFolder, options: ExportOptions) -> Path:
    """Where an export is kept with its run; there is one of each format."""
    return run.exports_folder / options.format


def exports(run: RunFolder) -> list[Exported]:
    """Those that are kept with the run, newest last."""
    files = run.exports_folder.glob(f"*/{EXPORT_FILE}")
    found = [Exported.model_validate_json(file.read_bytes()) for file in files]
    return sorted(found, key=lambda each: each.time)
