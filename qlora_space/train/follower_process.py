"""The worker's side of a follower: starts the process, exchanges messages with it, and explains how it ended."""

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from qlora_space.core.errors import ModelError
from qlora_space.train.protocol import ANSWERS, Frame, frame_bytes

Tensor = torch.Tensor
_COMMAND = ("-m", "qlora_space.places.worker", "follow")
PATIENCE_SECONDS = 600.0  # for a follower that lives and does not answer
HEARTBEAT_SECONDS = 0.5
ENDING_SECONDS = 5.0
LAST_WORDS = 1000
HINT = "Resume goes on from the last checkpoint; with num_processes 1 a new run takes one GPU only."


class FollowerProcess:
    """One process on one GPU. An answer that does not come becomes a ModelError."""

    def __init__(
        self, rank: int, gpu: str, arguments: Sequence[str], check_in: Callable[[], None]
    ) -> None:
        self._rank, self._check_in, self._unread, self.is_wanted = rank, check_in, b"", True
        self.process = subprocess.Popen(
            [sys.executable, *_COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # its log is ours
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)

    def __str__(self) -> str:
        return f"GPU {self._rank + 1} of this run"

    def send(self, frame: Frame, tensors: dict[str, Tensor] | None = None) -> None:
        left = memoryview(frame_bytes(frame, tensors))
        while left:
            self._wait_for(self._to, selectors.EVENT_WRITE)
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._gone() from None

    def read_answer(self) -> str:
        """Its next line."""
        while b"\n" not in self._unread:
            self._wait_for(self._from, selectors.EVENT_READ)
            piece = os.read(self._from, 2**16)
            if not piece:
                raise self._gone()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")

    def expect(self, answer: str) -> None:
        """Raises ModelError if its next line is another one."""
        got = self.read_answer()
        if got != answer:
            raise ModelError(f"{self} stopped: {got[:LAST_WORDS]}", HINT)

    def check(self, grace_seconds: float = 0.0) -> None:
        """Raises ModelError if it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
            raise self._gone()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _wait_for(self, file: int, event: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(file, event)
            while not selector.select(HEARTBEAT_SECONDS):
                self._check_in()
                if time.monotonic() > deadline:
                    minutes = round(PATIENCE_SECONDS / 60)
                    raise ModelError(f"{self} has not answered for {minutes} minutes.", HINT)

    def _gone(self) -> ModelError:
        """In its own last line, if there is one."""
        try:
            self.process.wait(ENDING_SECONDS)
            while piece := os.read(self._from, 2**16):
                self._unread += piece
        except subprocess.TimeoutExpired:
            return ModelError(f"{self} is lost: its process does not answer any more.", HINT)
        words = self._unread.decode(errors="replace").splitlines()
        if words and words[-1] not in ANSWERS:
            return ModelError(f"{self} stopped: {words[-1][:LAST_WORDS]}", HINT)
        status = self.process.poll()
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with {status}"
        return ModelError(f"{self} is lost: its process {how}.", HINT)
