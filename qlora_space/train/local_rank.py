"""A further process of a run on this machine, started by rank 0. On several machines torchrun or its like starts them.

Ours buys what torchrun does not: a run whose other GPUs cannot take part goes on with one, and an end comes with the
GPU's name in a sentence.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from qlora_space.core.launch import Launch

_COMMAND = ("-m", "qlora_space.places.worker", "train")
ENDING_SECONDS = 5.0


class LocalRank:
    """The same worker on the same run, as another rank."""

    def __init__(self, launch: Launch, gpu: str, run_folder: Path) -> None:
        self.rank = launch.rank
        self.process = subprocess.Popen(
            [sys.executable, *_COMMAND, str(run_folder)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,  # its log is ours
            env=os.environ | launch.variables() | {"CUDA_VISIBLE_DEVICES": gpu},
        )

    def how_it_ended(self) -> str:
        """'' while it lives."""
        status = self.process.poll()
        if status is None:
            return ""
        return f"was killed by signal {-status}" if status < 0 else f"ended with {status}"

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_SECONDS)
            return
        self.process.kill()
        self.process.wait()
