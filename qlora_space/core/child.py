"""A Python process of ours that may crash, hang or be ended by the library that it runs: why is in its last words."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

_MOST_CHARS = 300
_log = logging.getLogger(__name__)


class ChildFailed(Exception):
    """Its text is why, one line."""


def run_python(
    arguments: Sequence[str],
    *,
    seconds: float,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """What `python ARGUMENTS` writes to stdout; `environment` comes on top of ours. Raises ChildFailed."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"it was not done after {seconds / 60:.0f} minutes") from None
    if done.returncode:
        _log.warning("%s failed: %s", arguments[-1], done.stderr[-4000:])
        raise ChildFailed(_last_line(done.stderr) or _how_it_ended(done.returncode))
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_MOST_CHARS].rstrip(".") if lines else ""


def _how_it_ended(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"
