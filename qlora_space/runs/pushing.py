"""One push of a run at a time, whichever process makes it: the server, its worker, or a command."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qlora_space.core.errors import RunError
from qlora_space.runs.folder import RunFolder


@contextmanager
def one_push(run: RunFolder) -> Iterator[None]:
    """The kernel ends it however this process ends. Raises RunError if the run is being published already."""
    with run.push_lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError("This run is being published right now.", "Wait a moment.") from None
        except OSError:  # a file system without locks
            pass
        yield


def is_being_pushed(run: RunFolder) -> bool:
    with suppress(OSError), run.push_lock.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
