"""Several GPUs, data parallel: the worker of a run and, for each further GPU, a helper that only adds up gradients.

All that a run is stays in the worker: optimizer, snapshots, guards, events. So nothing of how a run survives depends
on the number of GPUs; with `accelerate launch` every process would have a part of it. Helpers (follower.py) hold the
base and, for the length of an update, a copy of the adapter.
"""

import contextlib
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from qlora_space.data import IGNORED_LABEL
from qlora_space.errors import ModelError
from qlora_space.fast import FastStep
from qlora_space.runs import RunFolder
from qlora_space.train.wire import Frame, connect, frame_bytes

Tensor = torch.Tensor
_COMMAND = ("-m", "qlora_space.worker", "follow")
_PATIENCE_SECONDS = 600.0  # for a helper that lives and says nothing
_PULSE_SECONDS = 0.5
_POLL_SECONDS = 0.0005
_ABORT_SECONDS = 10.0
_LAST_WORDS = 1000


class Helpers:
    """The other GPUs of a run. None of them: `world` is 1, and nothing here does anything."""

    def __init__(self, run: RunFolder, cards: Sequence[str], pulse: Callable[[], None]) -> None:
        """cards: what CUDA_VISIBLE_DEVICES is for each. pulse: called while waiting; what it raises ends the wait."""
        self._run, self._cards, self._pulse = run, cards, pulse
        self._helpers: list[_Helper] = []
        self._store_file = Path()
        self._group: Any = None
        self._counts: tuple[object, float] = (None, 0.0)
        self._sums: list[Any] = []  # on their way

    @property
    def world(self) -> int:
        """Processes that share a step, the worker with them."""
        return 1 + len(self._cards)

    def start(self, base_folder: Path) -> None:
        """They read the base from there; a low-bit plan's packed one must be named in the run folder already."""
        if self._cards:
            self._store_file = Path(tempfile.mkdtemp(prefix="qlora-space-")) / "store"
        for rank, card in enumerate(self._cards, 1):
            arguments = (self._run.path, rank, self.world, self._store_file, base_folder)
            self._helpers.append(_Helper(rank, card, [str(a) for a in arguments], self._pulse))

    def connect(self) -> None:
        """When the base is in memory here: waits until it is in theirs. Raises ModelError."""
        if not self._helpers:
            return
        for helper in self._helpers:
            helper.expect("loaded")
        device = self._run.plan().hardware.device
        thread = Thread(target=self._connect, args=(device,), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_PULSE_SECONDS)
            self._pulse()
            self._check()
        for helper in self._helpers:
            Thread(target=self._give_up_without, args=(helper,), daemon=True).start()

    def get_ready(self, fast_step: FastStep) -> None:
        """When the fast step is made here: waits until it is made there, and does the same. Raises ModelError."""
        for helper in self._helpers:
            helper.expect("ready")
            if fast_step.is_fp8:
                helper.send(Frame.FP8)

    def micro_step(
        self,
        fast_step: FastStep,
        inputs: Mapping[str, Tensor],
        num_items: Tensor | float,
        *,
        is_last: bool,
    ) -> Tensor:
        """As fast_step(inputs, num_items), the rows (B, S) shared by all GPUs; after the last one of an update the
        gradients here are those of all.

        Raises torch.OutOfMemoryError wherever memory ran out, ModelError if a helper ended.
        """
        gradients = fast_step.fast.gradients
        count = self._number(num_items)
        shares = list(_shares(inputs, self.world))
        if gradients.are_taken:
            self._tell(Frame.WEIGHTS)
            self._send(gradients.hold_weights())
        for helper, share in zip(self._helpers, shares[1:], strict=True):
            if _has_trained(share):
                helper.send(Frame.ROWS, share | {"num_items": torch.tensor(count)})
        loss = fast_step(shares[0], num_items)
        return loss + self._sum(gradients.flat, loss) if is_last else loss

    def settle(self) -> None:
        """After an optimizer step, when the GPU has got its work: wait until it was done on true sums.

        Nothing else may end the step here, which is half told. Raises ModelError if a helper ended.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._broken_off():
            while not all(work.is_completed() for work in self._sums):
                time.sleep(_POLL_SECONDS)
                self._check()
                if time.monotonic() > deadline:
                    raise ModelError("The GPUs of this run wait for each other.", _HINT)
        self._sums.clear()
        self._check()

    def close(self) -> None:
        """End them. They have nothing to lose."""
        if self._group is not None:
            for helper in self._helpers:
                helper.is_wanted = False
            aborting = Thread(target=self._group.abort, daemon=True)
            aborting.start()
            aborting.join(_ABORT_SECONDS)
        for helper in self._helpers:
            helper.close()
        if self._helpers:
            shutil.rmtree(self._store_file.parent, ignore_errors=True)
        self._helpers, self._cards, self._group = [], (), None

    def _connect(self, device: str) -> None:
        self._group = connect(self._store_file, 0, self.world, device)

    def _give_up_without(self, helper: "_Helper") -> None:
        """A GPU that waits for one that is gone would wait forever."""
        helper.process.wait()
        if helper.is_wanted and self._group is not None:
            self._group.abort()

    def _number(self, num_items: Tensor | float) -> float:
        """Read from the GPU once an update, when nothing is computed yet."""
        if self._counts[0] is not num_items:
            self._counts = (num_items, float(num_items))
        return self._counts[1]

    def _tell(self, frame: Frame) -> None:
        for helper in self._helpers:
            helper.send(frame)

    def _check(self) -> None:
        for helper in self._helpers:
            helper.check()

    def _send(self, weights: Tensor) -> None:
        with self._broken_off():
            self._group.broadcast(weights, 0).wait()  # of a GPU: its stream waits, not this process

    def _sum(self, gradients: Tensor, loss: Tensor) -> Tensor:
        """All that was computed for this update comes together here; returns the others' losses."""
        self._tell(Frame.TELL)
        words = [helper.line() for helper in self._helpers]
        for helper, word in zip(self._helpers, words, strict=True):
            if word == "out of memory":
                raise torch.OutOfMemoryError(f"CUDA out of memory on {helper}.")
            helper.be_content(word, "done")
        self._tell(Frame.SUM)
        others = torch.zeros_like(loss).reshape(1)
        with self._broken_off():
            self._sums = [self._group.reduce(each, 0) for each in (gradients, others)]
            for work in self._sums:
                work.wait()
        return others.reshape(loss.shape)

    @contextlib.contextmanager
    def _broken_off(self) -> Iterator[None]:
        """Raises ModelError where the other end is gone."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            for helper in self._helpers:
                helper.check(grace_seconds=5.0)
            raise ModelError(
                f"The GPUs lost each other: {str(error).splitlines()[0][:200]}.", _HINT
            ) from error


_HINT = (
    "Resume goes on from the last checkpoint; with num_processes 1 a new run takes one GPU only."
)


class _Helper:
    """One process on one GPU. Whatever it should say and does not becomes a ModelError."""

    def __init__(
        self, rank: int, card: str, arguments: Sequence[str], pulse: Callable[[], None]
    ) -> None:
        self._rank, self._pulse, self._unread, self.is_wanted = rank, pulse, b"", True
        self.process = subprocess.Popen(
            [sys.executable, *_COMMAND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,  # its log is ours
            env=os.environ | {"CUDA_VISIBLE_DEVICES": card},
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

    def line(self) -> str:
        """What it says next."""
        while b"\n" not in self._unread:
            self._wait_for(self._from, selectors.EVENT_READ)
            piece = os.read(self._from, 2**16)
            if not piece:
                raise self._gone()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")

    def expect(self, word: str) -> None:
        self.be_content(self.line(), word)

    def be_content(self, line: str, word: str) -> None:
        if line != word:
            raise ModelError(f"{self} stopped: {line[:_LAST_WORDS]}", _HINT)

    def check(self, grace_seconds: float = 0.0) -> None:
        """Raises ModelError if it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
            self.expect("its last words")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _wait_for(self, file: int, event: int) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(file, event)
            while not selector.select(_PULSE_SECONDS):
                self._pulse()
                if time.monotonic() > deadline:
                    minutes = round(_PATIENCE_SECONDS / 60)
                    raise ModelError(f"{self} has not answered for {minutes} minutes.", _HINT)

    def _gone(self) -> ModelError:
        """With its own last words, if it had any."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        status = self.process.poll()
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with {status}"
        return ModelError(f"{self} is lost: its process {how}.", _HINT)


def _shares(inputs: Mapping[str, Tensor], world: int) -> Iterator[dict[str, Tensor]]:
    """Rows one after the other, as evenly as can be; the last ones may be empty."""
    parts = {name: tensor.tensor_split(world) for name, tensor in inputs.items()}
    for i in range(world):
        yield {name: part[i].contiguous() for name, part in parts.items()}


def _has_trained(share: Mapping[str, Tensor]) -> bool:
    return bool((share["labels"] != IGNORED_LABEL).any())
