"""What nobody has used for long leaves a public Space: runs that are over, uploads, prepared data.

An adapter that was published nowhere goes only some days after its run's page has said so. This machine's own user
keeps everything.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qlora_space.core.atomic import write_atomically
from qlora_space.core.limits import Limits
from qlora_space.core.settings import Home
from qlora_space.core.visitor import LOCAL
from qlora_space.runs.folder import RunFolder, delete_run, list_runs
from qlora_space.runs.view import view_of

_DAY_SECONDS = 86400.0
_EVERY_SECONDS = 3600.0
_log = logging.getLogger(__name__)


def keep_clean(home: Home, limits: Limits) -> None:
    """Clean now and every hour, in a thread."""
    threading.Thread(target=_keep_clean, args=(home, limits), daemon=True).start()


def _keep_clean(home: Home, limits: Limits) -> None:
    while True:
        try:
            clean(home, limits, time.time())
        except OSError as error:  # another hour, another try
            _log.warning("Old files could not be cleaned: %s", error)
        time.sleep(_EVERY_SECONDS)


def clean(home: Home, limits: Limits, now: float) -> None:
    """Delete what is due at Unix time `now`, and warn of what will be."""
    kept: list[RunFolder] = []
    for run in list_runs(home.runs_folder):
        if run.owner != LOCAL and _is_due(run, limits, now):
            delete_run(run)
        else:
            kept.append(run)
    used = {_dataset_of(run) for run in kept}
    for path in _private_files(home):
        is_old = now - path.stat().st_mtime > limits.keep_days * _DAY_SECONDS
        if is_old and not any(str(path) in dataset for dataset in used):
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink(missing_ok=True)


def _is_due(run: RunFolder, limits: Limits, now: float) -> bool:
    view = view_of(run)
    if not view.is_over or now - view.last_at < limits.keep_days * _DAY_SECONDS:
        return False
    if not run.has_adapter or run.publications():
        return True
    delete_at = run.delete_at()
    if delete_at is None:
        write_atomically(run.delete_at_file, str(now + limits.warning_days * _DAY_SECONDS))
        return False
    return now > delete_at


def _dataset_of(run: RunFolder) -> str:
    with contextlib.suppress(OSError, ValueError):
        return run.request().dataset
    return ""


def _private_files(home: Home) -> Iterator[Path]:
    """Folders of single uploads and of prepared data, and files of what bases answered, of all visitors."""
    yield from (home.path / "owners").glob("*/uploads/*")
    yield from (home.path / "owners").glob("*/prepared/*")
    yield from (home.path / "owners").glob("*/base_results/*")
