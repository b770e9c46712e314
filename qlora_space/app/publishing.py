"""Pushes that are under way, and those that were cut off or refused for a while: they are sent again.

The run folder holds what is to be sent and no token. This machine's user has a token at any time, so a thread sends
what is due; on a Space that happens when the owner is here, signed in.
"""

import logging
import threading
import time

from qlora_space.app.actions import Actions
from qlora_space.core.errors import first_line
from qlora_space.runs import RunFolder
from qlora_space.runs.pushing import is_being_pushed

_EVERY_SECONDS = 30.0
_log = logging.getLogger(__name__)


def unsent_runs(acting: Actions) -> list[RunFolder]:
    """The visitor's runs with a push that is to be made again, newest first."""
    return [run for run, view in acting.runs() if view.is_over and run.unsent_push() is not None]


def send_due(acting: Actions, now: float) -> int:
    """Send the visitor's pushes that are due at Unix time `now`; the number of those that arrived."""
    arrived = 0
    for run in unsent_runs(acting):
        push = run.unsent_push()
        if push is None or now < push.next_at or is_being_pushed(run):
            continue
        try:
            acting.publish(run, push.request)
        except Exception as error:  # of one run: the others are sent all the same
            _log.warning("Run %s is not published yet: %s", run.id, first_line(error))
        else:
            arrived += 1
    return arrived


def send_when_here(acting: Actions) -> None:
    """Send what is due of a visitor who has just come, in a thread: nobody waits for it."""
    if acting.may_start and unsent_runs(acting):
        threading.Thread(target=send_due, args=(acting, time.time()), daemon=True).start()


def keep_sending(acting: Actions) -> None:
    """Send what is due now and later, in a thread, for this machine's user."""
    threading.Thread(target=_keep_sending, args=(acting,), daemon=True).start()


def _keep_sending(acting: Actions) -> None:
    while True:
        try:
            send_due(acting, time.time())
        except OSError as error:  # a disk that fails may be back soon
            _log.warning("Runs could not be read: %s", first_line(error))
        time.sleep(_EVERY_SECONDS)


def forget_unsent(acting: Actions, run: RunFolder) -> None:
    """Do not send it again. The adapter stays here. Raises RunError for a run of somebody else."""
    acting.run(run.id).forget_unsent_push()
