"""Several GPUs, data parallel: the worker of a run and, for each further GPU, a follower that only adds up gradients.

All that a run is stays in the worker: optimizer, snapshots, guards, events. So nothing of how a run survives depends
on the number of GPUs; with `accelerate launch` every process would have a part of it. Followers (follower.py) hold the
base and, for the length of an update, a copy of the adapter.
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
from qlora_space.train.protocol import DONE, LOADED, OUT_OF_MEMORY, READY, Frame, connect, try_out

Tensor = torch.Tensor
_POLL_SECONDS = 0.0005
_ABORT_SECONDS = 10.0
_CONNECT_SECONDS = 120.0  # NCCL takes a few; without a way from GPU to GPU it may wait for ever


class Followers:
    """The other GPUs of a run. None of them: `world` is 1, and nothing here does anything."""

    def __init__(self, run: RunFolder, cards: Sequence[str], heartbeat: Callable[[], None]) -> None:
        """cards: CUDA_VISIBLE_DEVICES of each. heartbeat: called while waiting; what it raises ends the wait."""
        self._run, self._cards, self._heartbeat = run, cards, heartbeat
        self._followers: list[FollowerProcess] = []
        self._store_file = Path()
        self._group: Any = None
        self._why_not_connected = "nothing was tried"
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
            self._followers.append(
                FollowerProcess(rank, card, [str(a) for a in arguments], self._heartbeat)
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
            self._heartbeat()
            self._check()
        if self._why_not_connected:
            why = f"The GPUs of this run could not be connected: {self._why_not_connected}."
            raise ModelError(why, HINT)
        for follower in self._followers:
            Thread(target=self._give_up_without, args=(follower,), daemon=True).start()

    def get_ready(self, fast_step: FastStep) -> None:
        """When the fast step is made here: waits until it is made there, and does the same. Raises ModelError."""
        for follower in self._followers:
            follower.expect(READY)
            if fast_step.is_fp8:
                follower.send(Frame.FP8)

    def micro_step(
        self,
        fast_step: FastStep,
        inputs: Mapping[str, Tensor],
        num_items: Tensor | float,
        *,
        is_last: bool,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """As fast_step(inputs, num_items), the rows (B, S) shared by all GPUs; after the last one of an update the
        gradients here are those of all. meanwhile: called when all have got their work.

        Raises torch.OutOfMemoryError wherever memory ran out, ModelError if a follower ended.
        """
        gradients = fast_step.fast.gradients
        count = float(num_items)
        shares = list(_shares(inputs, self.world))
        if gradients.are_taken:
            self._tell(Frame.WEIGHTS)
            self._send(gradients.hold_weights())
        for follower, share in zip(self._followers, shares[1:], strict=True):
            if _has_trained(share):
                follower.send(Frame.ROWS, share | {"num_items": torch.tensor(count)})
        loss = fast_step(shares[0], num_items)
        meanwhile()
        return loss + self._sum(gradients.flat, loss) if is_last else loss

    def settle(self) -> None:
        """After an optimizer step, when the GPU has got its work: wait until it was done on true sums.

        Nothing else may end the step here, which is half told. Raises ModelError if a follower ended.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._broken_off():
            while not all(work.is_completed() for work in self._sums):
                time.sleep(_POLL_SECONDS)
                self._check()
                if time.monotonic() > deadline:
                    raise ModelError("The GPUs of this run wait for each other.", HINT)
        self._sums.clear()
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
        self._followers, self._cards, self._group = [], (), None

    def _connect(self, device: str) -> None:
        seconds = f"{_CONNECT_SECONDS:.0f} s"
        self._why_not_connected = f"no answer in {seconds} (NCCL_P2P_DISABLE=1 helps some machines)"
        try:
            self._group = connect(self._store_file, 0, self.world, device)
            try_out(self._group, 0, self.world, device)
            self._why_not_connected = ""
        except RuntimeError as error:
            self._why_not_connected = first_line(error)

    def _give_up_without(self, follower: "FollowerProcess") -> None:
        """A GPU that waits for one that is gone would wait forever."""
        follower.process.wait()
        if follower.is_wanted:
            self._abort()

    def _abort(self) -> None:
        group = self._group
        if group is not None:
            group.abort()

    def _tell(self, frame: Frame) -> None:
        for follower in self._followers:
            follower.send(frame)

    def _check(self) -> None:
        for follower in self._followers:
            follower.check()

    def _send(self, weights: Tensor) -> None:
        with self._broken_off():
            self._group.broadcast(weights, 0).wait()  # of a GPU: its stream waits, not this process

    def _sum(self, gradients: Tensor, loss: Tensor) -> Tensor:
        """All that was computed for this update comes together here; returns the others' losses."""
        self._tell(Frame.TELL)
        words = [follower.word() for follower in self._followers]
        for follower, word in zip(self._followers, words, strict=True):
            if word == OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(f"CUDA out of memory on {follower}.")
            if word != DONE:
                raise ModelError(f"{follower} stopped: {word[:LAST_WORDS]}", HINT)
        others = torch.zeros_like(loss).reshape(1)
        self._tell(Frame.SUM)
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
            for follower in self._followers:
                follower.check(ENDING_SECONDS)
            raise ModelError(f"The GPUs lost each other: {first_line(error)}.", HINT) from error


def _shares(inputs: Mapping[str, Tensor], world: int) -> Iterator[dict[str, Tensor]]:
    """The rows (B, S), each in one share, no share with more than its part of them; their tokens as even as a greedy
    choice makes them, because an update takes as long as the longest share. The last ones may be empty."""
    places = torch.arange(1, inputs["labels"].shape[1] + 1)
    # What is after a row's last trained token is left out.
    sizes = (places * (inputs["labels"] != IGNORED_LABEL)).amax(1).tolist()
    most = -(-len(sizes) // world)
    members: list[list[int]] = [[] for _ in range(world)]
    for row in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        open_to_more = [share for share in members if len(share) < most]
        min(open_to_more, key=lambda share: sum(sizes[i] for i in share)).append(row)
    for share in members:
        yield {name: tensor[sorted(share)] for name, tensor in inputs.items()}


def _has_trained(share: Mapping[str, Tensor]) -> bool:
    return bool((share["labels"] != IGNORED_LABEL).any())
