"""follow(): the process of a further GPU of a run. It holds no state that would be lost (see data_parallel.py)."""

import logging
import os
import queue
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TextIO

import torch
from peft import PeftModel

from qlora_space.core.errors import ModelError, QloraSpaceError
from qlora_space.fast import FastStep, attach
from qlora_space.model import explains_out_of_memory, is_out_of_memory
from qlora_space.runs import RunFolder
from qlora_space.train.load import base_and_adapter, warm_up_in_background
from qlora_space.train.protocol import (
    DONE,
    LOADED,
    OUT_OF_MEMORY,
    READY,
    Frame,
    check_group,
    connect,
    read_frames,
)
from qlora_space.train.recovery import release_memory

Tensor = torch.Tensor
Frames = Iterator[tuple[Frame, dict[str, Tensor]]]
log = logging.getLogger("qlora_space.follower")


def follow(run: RunFolder, rank: int, world: int, store_file: Path, base_folder: Path) -> int:
    """Compute gradients until stdin is closed. stdout is for ANSWERS alone."""
    for number in (signal.SIGTERM, signal.SIGINT):  # the worker decides; this process ends with it
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between them
    frames = _read_in_background(sys.stdin.buffer)
    try:
        with explains_out_of_memory("Loading the base on a further GPU"):
            _Follower(run, rank, world, store_file, base_folder, answers).serve(frames)
    except QloraSpaceError as error:
        print(error.what, file=answers)
    except Exception as error:
        log.exception("A follower failed.")
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=answers)
    return 1


class _Follower:
    """A base, a copy of the adapter, and gradients."""

    def __init__(
        self, run: RunFolder, rank: int, world: int, store_file: Path, base_folder: Path, answers: TextIO
    ) -> None:  # fmt: skip
        self._answers, device = answers, run.plan().hardware.device
        model = _model(run, base_folder)
        self._answer(LOADED)
        self._group = connect(store_file, rank, world, device)
        check_group(self._group, rank, world, device)
        policies_file = run.home.policies_file(rank)
        self._fast_step = _attached(model, policies_file, device)
        self._gradients = self._fast_step.fast.gradients
        self._loss = torch.zeros(1, device=device)
        self._out_of_memory = False  # since the last weights
        self._answer(READY)

    def serve(self, frames: Frames) -> None:
        """Handle each frame; when the frames end, the process does."""
        for frame, tensors in frames:
            match frame:
                case Frame.FP8:
                    self._fast_step.switch_fp8(is_used=True)
                case Frame.WEIGHTS:
                    self._begin()
                case Frame.ROWS:
                    self._add(tensors)
                case Frame.REPORT:
                    self._answer(OUT_OF_MEMORY if self._out_of_memory else DONE)
                case Frame.SUM:
                    for each in (self._gradients.flat, self._loss):
                        self._group.reduce(each, 0).wait()

    def _answer(self, line: str) -> None:
        print(line, file=self._answers)

    def _begin(self) -> None:
        self._group.broadcast(self._gradients.flat, 0).wait()
        self._gradients.unpack_weights()
        self._gradients.start()
        self._loss.zero_()
        self._out_of_memory = False

    def _add(self, tensors: dict[str, Tensor]) -> None:
        """Running out of memory is reported on REPORT; the worker then starts the step again with fewer rows."""
        if self._out_of_memory:
            return
        num_items = float(tensors.pop("num_items"))
        try:
            self._loss += self._fast_step(tensors, num_items)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._out_of_memory = True
        # Outside of `except`, so that nothing holds the tensors of the broken step.
        if self._out_of_memory:
            release_memory()


def _model(run: RunFolder, base_folder: Path) -> PeftModel:
    plan = run.plan()
    warming = warm_up_in_background(plan, base_folder)
    model = base_and_adapter(run, base_folder)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if warming is not None:
        warming.join()
    return model


def _attached(model: PeftModel, policies_file: Path, device: str) -> FastStep:
    fast_step, text = attach(model, policies_file, on_cpu=device == "cpu")
    if fast_step is None:
        raise ModelError(f"The GPUs of this run do not agree. {text}", "Use one GPU.")
    return fast_step


def _read_in_background(stream: BinaryIO) -> Frames:
    """Frames as they come. When the worker ends, this process does, whatever it waits for."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        try:
            for each in read_frames(stream):
                waiting.put(each)
        finally:
            os._exit(0)

    Thread(target=read, daemon=True).start()
    return iter(waiting.get, None)
