"""Which runs are being published by this process: one push of a run at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qlora_space.core.errors import RunError


class Sending:
    """Shared by all visitors' actions."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._changing = threading.Lock()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._ids

    @contextmanager
    def one(self, run_id: str) -> Iterator[None]:
        """Raises RunError if it is being published already."""
        with self._changing:
            if run_id in self._ids:
                raise RunError("This run is being published right now.", "Wait a moment.")
            self._ids.add(run_id)
        try:
            yield
        finally:
            self._ids.discard(run_id)
