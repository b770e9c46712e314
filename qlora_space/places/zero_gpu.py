"""Runs on a Space with ZeroGPU: a worker for each, which asks for slices of a GPU as long as a page of its run asks.

The web process neither imports the platform's library nor torch: `worker lent-gpu` reports to the platform what there
is to lend a GPU to.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from pydantic import ValidationError

from qlora_space.core.errors import BackendError
from qlora_space.core.facts import Hardware
from qlora_space.core.machine import read_hardware
from qlora_space.places.environment import lent_gpu_environment
from qlora_space.places.lent_gpu import LentGpu
from qlora_space.places.local import LocalBackend
from qlora_space.runs import RunFolder

_ANNOUNCE_SECONDS = 300.0


class ZeroGpuBackend(LocalBackend):
    """As LocalBackend, but that a run goes on only while `keep_going` is called for it."""

    def __init__(self) -> None:
        super().__init__()
        self._asks: dict[str, int] = {}  # the pipe to the worker, by run
        self._gpu: LentGpu | None = None

    def announce(self) -> None:
        """Before the page is up: the platform ends a Space that has nothing to lend a GPU to. Raises BackendError."""
        command = [sys.executable, "-m", "qlora_space.places.worker", "lent-gpu"]
        try:
            done = subprocess.run(
                command,
                env=lent_gpu_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_ANNOUNCE_SECONDS,
                check=True,
            )
            self._gpu = LentGpu.model_validate_json(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, IndexError, ValidationError) as error:
            raise BackendError(
                f"ZeroGPU did not say what it lends ({type(error).__name__}).",
                "Restart the Space; its log says more.",
            ) from error

    def hardware(self, home: Path) -> Hardware:
        """The GPU that is lent; this machine's own before it was announced."""
        here = read_hardware(home)
        return self._gpu.hardware(here) if self._gpu else here

    def start(self, run: RunFolder, token: str | None) -> None:
        """As there; the worker prepares the data, and waits for `keep_going` before each slice."""
        run.clear_control_requests()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            arguments = ["slices", str(run.path), str(reading)]
            self._start(run, token, arguments, lent_gpu_environment(), (reading,))
        except BackendError:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._close(run.id)
        self._asks[run.id] = writing

    def keep_going(self, run: RunFolder, gpu_token: str) -> bool:
        """A page of the run is open, and its visitor's quota pays for the next slice. False if this server has not
        started the run's worker, or it has ended."""
        pipe = self._asks.get(run.id)
        if pipe is None:
            return False
        try:
            os.write(pipe, json.dumps(gpu_token).encode() + b"\n")
        except BlockingIOError:  # a worker that reads nothing has enough to read
            return True
        except BrokenPipeError:
            self._close(run.id)
            return False
        return True

    def _close(self, run_id: str) -> None:
        pipe = self._asks.pop(run_id, None)
        if pipe is not None:
            with contextlib.suppress(OSError):
                os.close(pipe)
