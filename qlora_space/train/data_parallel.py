"""Data parallelism: the worker of a run and, for each further GPU, a follower that only computes gradients.

The worker keeps all state: optimizer, snapshots, guards, events. So nothing about surviving failures depends on the
number of GPUs; with `accelerate launch` every process would hold a part of it. Followers (follower.py) hold the base
and, during a step, a copy of the adapter.
"""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from qlora_space.core.errors import ModelError, first_line
from qlora_space.data import IGNORED_LABEL
from qlora_space.fast import FastStep
from qlora_space.runs import RunFolder
from qlora_space.train.follower_process import (
    ENDING_SECONDS,
    HEARTBEAT_SECONDS,
    HINT,
    LAST_WORDS,
    PATIENCE_SECONDS,
    FollowerProcess,
)
from qlora_space.train.protocol import (
    DONE,
    LOADED,
    OUT_OF_MEMORY,
    READY,
    Frame,
    check_group,
    connect,
)

Tensor = torch.Tensor
_POLL_SECONDS = 0.0005
_ABORT_SECONDS = 10.0
_CONNECT_SECONDS = 120.0  # NCCL takes a few; without a way from GPU to GPU it may wait for ever


class Followers:
    """The other GPUs of a run. Without any, `world` is 1 and every method does nothing."""

    def __init__(self, run: RunFolder, gpus: Sequence[str], check_in: Callable[[], None]) -> None:
        """gpus: CUDA_VISIBLE_DEVICES of each. check_in: called while waiting; what it raises ends the wait."""
        self._run, self._gpus, self._check_in = run, gpus, check_in
        self._followers: list[FollowerProcess] = []
        self._store_file = Path()
        self._group: Any = None
        self._connection_problem = "nothing was tried"
        self._reductions: list[Any] = []  # under way

    @property
    def world(self) -> int:
        """Processes that share a step, the worker with them."""
        return 1 + len(self._gpus)

    def start(self, base_folder: Path) -> None:
        """They read the base from there; a low-bit plan's packed one must be named in the run folder already."""
        if self._gpus:
            self._store_file = Path(tempfile.mkdtemp(prefix="qlora-space-")) / "store"
        for rank, gpu in enumerate(self._gpus, 1):
            arguments = (self._run.path, rank, self.world, self._store_file, base_folder)
            self._followers.append(
                FollowerProcess(rank, gpu, [str(a) for a in arguments], self._check_in)
            )

    def connect(self) -> None:
        """When the base is in memory here: waits until it is in theirs. Raises ModelError; after it, close()."""
        if not self._followers:
            return
        for follower in self._followers:
            follower.expect(LOADED)
        device = self._run.plan().hardware.device
        thread = Thread(target=self._connect, args=(device,), daemon=True)
        thread.start()
        deadline = time.monotonic() + _CONNECT_SECONDS
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(HEARTBEAT_SECONDS)
            self._check_in()
            self._check()
        if self._connection_problem:
            why = f"The GPUs of this run could not be connected: {self._connection_problem}."
            raise ModelError(why, HINT)
        for follower in self._followers:
            Thread(target=self._abort_when_lost, args=(follower,), daemon=True).start()

    def get_ready(self, fast_step: FastStep) -> None:
        """When the fast step is made here: waits until it is made there, and does the same. Raises ModelError."""
        for follower in self._followers:
            follower.expect(READY)
            if fast_step.is_fp8:
                follower.send(Frame.FP8)

    def add_gradients(
        self, fast_step: FastStep, inputs: Mapping[str, Tensor], num_items: float
    ) -> Tensor:
        """As fast_step(inputs, num_items), the rows (B, S) shared by all GPUs: queued here and sent to the others.

        Returns the loss of this GPU's share. Raises torch.OutOfMemoryError, ModelError if a follower ended.
        """
        gradients = fast_step.fast.gradients
        shares = list(_shares(inputs, self.world))
        if gradients.are_reset:
            self._send_all(Frame.WEIGHTS)
            self._broadcast(gradients.pack_weights())
        for follower, share in zip(self._followers, shares[1:], strict=True):
            if _has_trained(share):
                follower.send(Frame.ROWS, share | {"num_items": torch.tensor(float(num_items))})
        return fast_step(shares[0], num_items)

    def sum_gradients(self, fast_step: FastStep, loss: Tensor) -> Tensor:
        """After the last micro-batch of a step: the gradients here become those of all GPUs. Returns the loss of all.

        Raises torch.OutOfMemoryError wherever memory ran out, ModelError if a follower ended.
        """
        self._send_all(Frame.REPORT)
        answers = [follower.read_answer() for follower in self._followers]
        for follower, answer in zip(self._followers, answers, strict=True):
            if answer == OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(f"CUDA out of memory on {follower}.")
            if answer != DONE:
                raise ModelError(f"{follower} stopped: {answer[:LAST_WORDS]}", HINT)
        others = torch.zeros_like(loss).reshape(1)
        self._send_all(Frame.SUM)
        with self._explains_disconnection():
            flat = fast_step.fast.gradients.flat
            self._reductions = [self._group.reduce(each, 0) for each in (flat, others)]
            for work in self._reductions:
                work.wait()
        return loss + others.reshape(loss.shape)

    def synchronize(self) -> None:
        """After an optimizer step, when the GPU has its work: wait until it was done on complete sums.

        Nothing may interrupt the step here, which is half finished. Raises ModelError if a follower ended.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._explains_disconnection():
            while not all(work.is_completed() for work in self._reductions):
                time.sleep(_POLL_SECONDS)
                self._check()
                if time.monotonic() > deadline:
                    raise ModelError("The GPUs of this run wait for each other.", HINT)
        self._reductions.clear()
        self._check()

    def close(self) -> None:
        """End them. They have nothing to lose."""
        if self._group is not None:
            for follower in self._followers:
                follower.is_wanted = False
            aborting = Thread(target=self._abort, daemon=True)
            aborting.start()
            aborting.join(_ABORT_SECONDS)
        for follower in self._followers:
            follower.close()
        if self._followers:
            shutil.rmtree(self._store_file.parent, ignore_errors=True)
        self._followers, self._gpus, self._group = [], (), None

    def _connect(self, device: str) -> None:
        seconds = f"{_CONNECT_SECONDS:.0f} s"
        self._connection_problem = (
            f"no answer in {seconds} (NCCL_P2P_DISABLE=1 helps some machines)"
        )
        try:
            self._group = connect(self._store_file, 0, self.world, device)
            check_group(self._group, 0, self.world, device)
            self._connection_problem = ""
        except RuntimeError as error:
            self._connection_problem = first_line(error)

    def _abort_when_lost(self, follower: "FollowerProcess") -> None:
        """A GPU that waits for one that is gone would wait forever."""
        follower.process.wait()
        if follower.is_wanted:
            self._abort()

    def _abort(self) -> None:
        group = self._group
        if group is not None:
            group.abort()

    def _send_all(self, frame: Frame) -> None:
        for follower in self._followers:
            follower.send(frame)

    def _check(self) -> None:
        for follower in self._followers:
            follower.check()

    def _broadcast(self, weights: Tensor) -> None:
        with self._explains_disconnection():
            self._group.broadcast(weights, 0).wait()  # of a GPU: its stream waits, not this process

    @contextlib.contextmanager
    def _explains_disconnection(self) -> Iterator[None]:
        """Raises ModelError if another process is gone."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            for follower in self._followers:
                follower.check(ENDING_SECONDS)
            raise ModelError(f"The GPUs lost each other: {first_line(error)}.", HINT) from error


def _shares(inputs: Mapping[str, Tensor], world: int) -> Iterator[dict[str, Tensor]]:
    """Each of the rows (B, S) in one share, no share with more rows than its part; a greedy choice makes their tokens
    about even, because a step takes as long as its longest share. The last shares may be empty."""
    positions = torch.arange(1, inputs["labels"].shape[1] + 1)
    # Nothing is computed after a row's last trained token.
    sizes = (positions * (inputs["labels"] != IGNORED_LABEL)).amax(1).tolist()
    most = -(-len(sizes) // world)
    members: list[list[int]] = [[] for _ in range(world)]
    for row in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        open_to_more = [share for share in members if len(share) < most]
        min(open_to_more, key=lambda share: sum(sizes[i] for i in share)).append(row)
    for share in members:
        yield {name: tensor[sorted(share)] for name, tensor in inputs.items()}


def _has_trained(share: Mapping[str, Tensor]) -> bool:
    return bool((share["labels"] != IGNORED_LABEL).any())
