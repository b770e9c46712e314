"""The link by which others may see a run: a key in the run folder. It gives no right to do anything.

No copy of a run takes the key along (hub/mirror.py); a run that is deleted has no link any more.
"""

import secrets
from pathlib import Path

from qlora_space.core.atomic import write_atomically
from qlora_space.core.errors import RunError
from qlora_space.runs.folder import RunFolder, is_run_id

_KEY_BYTES = 32
_FILE = "share_key"


def share_key(run: RunFolder) -> str:
    """'' where the run is not shared."""
    file = run.path / _FILE
    return file.read_text() if file.is_file() else ""


def share(run: RunFolder) -> str:
    """The key, a new one unless the run is shared already. Raises DiskFull."""
    if not (key := share_key(run)):
        key = secrets.token_urlsafe(_KEY_BYTES)
        write_atomically(run.path / _FILE, key)
    return key


def stop_sharing(run: RunFolder) -> None:
    """Links that were given away show nothing any more; a later one is another."""
    (run.path / _FILE).unlink(missing_ok=True)


def find_shared(runs_folder: Path, run_id: str, key: str) -> RunFolder:
    """The run that both, any text, are of. Raises RunError, in the same words whatever is wrong."""
    run = RunFolder(runs_folder / run_id) if is_run_id(run_id) else None
    known = share_key(run) if run else ""
    if run is None or not known or not secrets.compare_digest(known.encode(), key.encode()):
        raise not_shared()
    return run


def not_shared() -> RunError:
    return RunError("Nothing is shared by this link, or no longer.", "Ask for a new one.")


def shared_address(run: RunFolder) -> str:
    """Of its page, below the server's own; '' where the run is not shared."""
    key = share_key(run)
    return f"shared/{run.id}/{key}" if key else ""
