"""Data parallelism: rank 0, the worker of a run, and others that only compute gradients.

Rank 0 keeps all state: optimizer, snapshots, guards, events. So nothing about surviving failures depends on the number
of GPUs. The others (other_rank.py) read their rows themselves, hold the base and, during a step, a copy of the adapter.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from qlora_space.core.errors import ModelError, first_line
from qlora_space.core.launch import Launch
from qlora_space.data import IGNORED_LABEL
from qlora_space.fast import FastStep
from qlora_space.runs import RunFolder
from qlora_space.train.batches import Batch
from qlora_space.train.between_ranks import (
    DONE,
    ENDED,
    LOOPBACK,
    OUT_OF_MEMORY,
    alive_key,
    answer_key,
    check_group,
    connect,
    failed_key,
    loopback_listener,
    open_store,
    order_bytes,
    order_key,
    serve_store,
)
from qlora_space.train.local_rank import ENDING_SECONDS, LocalRank

Tensor = torch.Tensor
_POLL_SECONDS = 0.0005
_HEARTBEAT_SECONDS = 0.5
_PATIENCE_SECONDS = 600.0  # for one that lives and does not answer
_SILENT_SECONDS = 30.0  # then one of another machine is lost
_ABORT_SECONDS = 10.0
_CONNECT_SECONDS = 120.0  # NCCL takes a few; without a way from GPU to GPU it may wait for ever
_HINT = (
    "Resume goes on from the last checkpoint; with num_processes 1 a new run takes one GPU only."
)


class Ranks:
    """The processes of a run, seen by rank 0. Without others, `world` is 1 and every method does nothing."""

    def __init__(
        self,
        run: RunFolder,
        check_in: Callable[[], None],
        *,
        gpus: Sequence[str] = (),
        launch: Launch | None = None,
    ) -> None:
        """launch: how this process and the others were started. Without, they are started here, one on each of `gpus`
        (CUDA_VISIBLE_DEVICES). check_in: called while waiting; what it raises ends the wait."""
        self._run, self._gpus, self._launch, self._check_in = run, gpus, launch, check_in
        self.world = launch.world_size if launch else 1 + len(gpus)
        self._local: list[LocalRank] = []
        self._orders = self._deleted = 0
        self._group: Any = None
        self._connection_problem = "nothing was tried"
        self._reductions: list[Any] = []  # under way
        self._lost, self._is_lost, self._is_closed = "", Event(), Event()

    def start(self, base_folder: Path) -> None:
        """They load the base, which is there or is downloaded by them; a low-bit plan's packed one must be named in the
        run folder already."""
        if self.world == 1:
            return
        listener = None
        if self._launch is None:
            listener = loopback_listener()
            port = listener.getsockname()[1]
            self._launch = Launch(0, self.world, 0, LOOPBACK, port)
            for rank, gpu in enumerate(self._gpus, 1):
                launch = Launch(rank, self.world, 0, LOOPBACK, port)
                self._local.append(LocalRank(launch, gpu, self._run.path))
        self._store = serve_store(self._launch, listener)
        self._order("load", base_folder=str(base_folder))
        Thread(target=self._watch, args=(open_store(self._launch),), daemon=True).start()

    def connect(self) -> None:
        """When the base is in memory here: waits until it is in theirs. Raises ModelError; after it, close()."""
        if self.world == 1:
            return
        self._expect_done()
        thread = Thread(target=self._connect, daemon=True)
        thread.start()
        deadline = time.monotonic() + _CONNECT_SECONDS
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_HEARTBEAT_SECONDS)
            self._check_in()
            self._check()
        if self._connection_problem:
            why = f"The GPUs of this run could not be connected: {self._connection_problem}."
            raise ModelError(why, _HINT)

    def get_ready(self, fast_step: FastStep, data_key: str) -> None:
        """When the fast step is made here: waits until it is made there on the same data. Raises ModelError."""
        self._order("get_ready", is_fp8=fast_step.is_fp8, data_key=data_key)
        self._expect_done()

    def add_gradients(self, fast_step: FastStep, batch: Batch, num_items: float) -> Tensor:
        """As fast_step(inputs, num_items), the rows shared by all GPUs: queued here and ordered from the others.

        Returns the loss of this GPU's share. Raises torch.OutOfMemoryError, ModelError if another one is lost.
        """
        gradients = fast_step.fast.gradients
        shares = shares_of(batch.inputs["labels"], self.world)
        if gradients.are_reset:
            self._order("take_weights")
            self._broadcast(gradients.pack_weights())
        rows = [[batch.rows[i] for i in share] for share in shares]
        self._order("add_rows", rows=rows, num_items=num_items)
        return fast_step({name: t[shares[0]] for name, t in batch.inputs.items()}, num_items)

    def sum_gradients(self, fast_step: FastStep, loss: Tensor) -> Tensor:
        """After the last micro-batch of a step: the gradients here become those of all GPUs. Returns the loss of all.

        Raises torch.OutOfMemoryError wherever memory ran out, ModelError if another one is lost.
        """
        self._order("report")
        self._expect_done()
        others = torch.zeros_like(loss).reshape(1)
        self._order("sum")
        with self._explains_disconnection():
            flat = fast_step.fast.gradients.flat
            self._reductions = [self._group.reduce(each, 0) for each in (flat, others)]
            for work in self._reductions:
                work.wait()
        return loss + others.reshape(loss.shape)

    def synchronize(self) -> None:
        """After an optimizer step, when the GPU has its work: wait until it was done on complete sums.

        Nothing may interrupt the step here, which is half finished. Raises ModelError if another one is lost.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._explains_disconnection():
            while not all(work.is_completed() for work in self._reductions):
                time.sleep(_POLL_SECONDS)
                self._check()
                if time.monotonic() > deadline:
                    raise ModelError("The GPUs of this run wait for each other.", _HINT)
        self._reductions.clear()
        self._check()

    def close(self) -> None:
        """End the others. They have nothing to lose."""
        if self.world > 1 and self._orders:
            self._is_closed.set()
            with contextlib.suppress(RuntimeError):  # the agent that served the store is gone
                self._store.set(ENDED, "")
                self._order("end")
            aborting = Thread(target=self._abort, daemon=True)
            aborting.start()
            aborting.join(_ABORT_SECONDS)
        for local in self._local:
            local.close()
        self._local, self._group, self._orders, self.world = [], None, 0, 1

    def _order(self, name: str, **values: Any) -> None:
        """The next thing that all others do; they do one after the other."""
        self._store.set(order_key(self._orders), order_bytes(name, **values))
        self._orders += 1

    def _expect_done(self) -> None:
        """Wait until all others have done the last order. Raises torch.OutOfMemoryError, ModelError."""
        last, others = self._orders - 1, range(1, self.world)
        keys, deadline = (
            [answer_key(rank, last) for rank in others],
            time.monotonic() + _PATIENCE_SECONDS,
        )
        while not self._are_there(keys):
            self._check_in()
            self._check()
            if time.monotonic() > deadline:
                minutes = round(_PATIENCE_SECONDS / 60)
                raise ModelError(
                    f"A GPU of this run has not answered for {minutes} minutes.", _HINT
                )
        answers = {rank: self._store.get(answer_key(rank, last)).decode() for rank in others}
        for number in range(self._deleted, last + 1):
            self._store.delete_key(order_key(number))
        for key in keys:
            self._store.delete_key(key)
        self._deleted = last + 1
        for rank, answer in answers.items():
            if answer == OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(f"CUDA out of memory on {_name(rank)}.")
            assert answer == DONE

    def _are_there(self, keys: list[str]) -> bool:
        try:
            self._store.wait(keys, timedelta(seconds=_HEARTBEAT_SECONDS))
        except dist.DistStoreError:  # not yet
            return False
        return True

    def _connect(self) -> None:
        assert self._launch is not None
        seconds = f"{_CONNECT_SECONDS:.0f} s"
        self._connection_problem = (
            f"no answer in {seconds} (NCCL_P2P_DISABLE=1 helps some machines)"
        )
        try:
            device = self._run.plan().hardware.device
            self._group = connect(open_store(self._launch), self._launch, device)
            check_group(self._group, 0, self.world, device)
            self._connection_problem = ""
        except RuntimeError as error:
            self._connection_problem = first_line(error)

    def _watch(self, store: dist.Store) -> None:
        """Abort the group when another process is lost: a GPU that waits for it would wait for ever."""
        beats: dict[int, tuple[int, float]] = {}
        while not self._lost and not self._is_closed.wait(_HEARTBEAT_SECONDS):
            try:
                lost = (self._how_lost(store, rank, beats) for rank in range(1, self.world))
                self._lost = next(filter(None, lost), "")
            except RuntimeError as error:  # who serves the store is gone
                self._lost = f"The GPUs of this run lost each other: {first_line(error)}."
        if self._lost:
            self._is_lost.set()
            self._abort()

    def _how_lost(self, store: dist.Store, rank: int, beats: dict[int, tuple[int, float]]) -> str:
        """'' as long as it lives. `beats`: the last count of each and when it was new."""
        local = next((each for each in self._local if each.rank == rank), None)
        how = local.how_it_ended() if local else ""
        if store.check([failed_key(rank)]):
            return f"{_name(rank)} stopped: {store.get(failed_key(rank)).decode(errors='replace')}"
        if how:
            return f"{_name(rank)} is lost: its process {how}."
        count, now = store.add(alive_key(rank), 0), time.monotonic()
        if count != beats.get(rank, (0, now))[0]:
            beats[rank] = (count, now)
        silent_seconds = now - beats[rank][1] if rank in beats and not local else 0.0
        is_silent = silent_seconds > _SILENT_SECONDS
        return (
            f"{_name(rank)} is lost: it is silent for {silent_seconds:.0f} s." if is_silent else ""
        )

    def _abort(self) -> None:
        group = self._group
        if group is not None:
            group.abort()

    def _check(self, grace_seconds: float = 0.0) -> None:
        """Raises ModelError if another process is lost."""
        if self._is_lost.wait(grace_seconds) if grace_seconds else self._is_lost.is_set():
            raise ModelError(self._lost, _HINT)

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
            self._check(ENDING_SECONDS)
            raise ModelError(f"The GPUs lost each other: {first_line(error)}.", _HINT) from error


def shares_of(labels: Tensor, world: int) -> list[list[int]]:
    """The rows of `labels` (B, S), each in one share, no share with more rows than its part. The last may be empty.

    A greedy choice makes their tokens about even, because a step takes as long as its longest share.
    """
    positions = torch.arange(1, labels.shape[1] + 1)
    # Nothing is computed after a row's last trained token.
    sizes = (positions * (labels != IGNORED_LABEL)).amax(1).tolist()
    most = -(-len(sizes) // world)
    shares: list[list[int]] = [[] for _ in range(world)]
    for row in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        open_to_more = [share for share in shares if len(share) < most]
        min(open_to_more, key=lambda share: sum(sizes[i] for i in share)).append(row)
    return [sorted(share) for share in shares]


def _name(rank: int) -> str:
    return f"GPU {rank + 1} of this run"
