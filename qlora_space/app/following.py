"""Runs in jobs that nobody follows, because this machine or its server was restarted: they are followed again.

The run folder has the job's id and no token. This machine's user has a token at any time; on a Space a run is followed
when its owner is here, signed in.
"""

import logging
import threading
import time

from qlora_space.app.actions import Actions
from qlora_space.core.errors import first_line
from qlora_space.runs import RunFolder
from qlora_space.runs.folder import owned_ids

_EVERY_SECONDS = 30.0
_log = logging.getLogger(__name__)


def runs_in_jobs(acting: Actions) -> list[RunFolder]:
    """The visitor's runs that are in jobs now."""
    mine = owned_ids(acting.settings.runs_folder, acting.visitor.subject)
    runs = (RunFolder(acting.settings.runs_folder / run_id) for run_id in mine)
    return [run for run in runs if run.is_in_job]


def follow_jobs(acting: Actions) -> int:
    """Follow the visitor's runs in jobs that nobody follows; how many."""
    number = 0
    for run in runs_in_jobs(acting):
        try:
            number += acting.jobs.attach(run, acting.token)
        except Exception as error:  # of one run: the others are followed all the same
            _log.warning("Run %s is not followed: %s", run.id, first_line(error))
    return number


def follow_when_here(acting: Actions) -> None:
    """Those of a visitor who has just come, in a thread: nobody waits for it."""
    if acting.may_start and runs_in_jobs(acting):
        threading.Thread(target=follow_jobs, args=(acting,), daemon=True).start()


def keep_following(acting: Actions) -> None:
    """Now and later, in a thread, for this machine's user."""
    threading.Thread(target=_keep_following, args=(acting,), daemon=True).start()


def _keep_following(acting: Actions) -> None:
    while True:
        try:
            follow_jobs(acting)
        except OSError as error:  # a disk that fails may be back soon
            _log.warning("Runs could not be read: %s", first_line(error))
        time.sleep(_EVERY_SECONDS)
