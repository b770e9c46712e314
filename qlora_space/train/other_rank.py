"""serve_rank_0(): a process that computes gradients for a run, without state that would be lost (data_parallel.py)."""

import itertools
import logging
import os
import signal
import time
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import PeftModel

from qlora_space.core.errors import ModelError, QloraSpaceError
from qlora_space.core.launch import Launch
from qlora_space.data import load_prepared, load_tokenizer
from qlora_space.data.prepared import Prepared
from qlora_space.fast import FastStep, attach
from qlora_space.hub import fetch_base
from qlora_space.model import explains_out_of_memory, is_out_of_memory
from qlora_space.runs import RunFolder
from qlora_space.train.batches import PackedCollator, TrainingRows, num_trained
from qlora_space.train.between_ranks import (
    DONE,
    ENDED,
    OUT_OF_MEMORY,
    alive_key,
    answer_key,
    check_group,
    connect,
    failed_key,
    open_store,
    order_key,
    read_order,
)
from qlora_space.train.load import base_and_adapter, warm_up_in_background
from qlora_space.train.recovery import release_memory

Tensor = torch.Tensor
log = logging.getLogger("qlora_space.other_rank")
_BEAT_SECONDS, _GRACE_SECONDS = 1.0, 10
_LAST_WORDS = 1000


def serve_rank_0(run: RunFolder, launch: Launch) -> int:
    """Do what rank 0 orders until it ends the run or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides; this process ends with it
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    store = open_store(launch)
    Thread(target=_beat, args=(open_store(launch), launch.rank), daemon=True).start()
    try:
        with explains_out_of_memory("Loading the base on a further GPU"):
            _OtherRank(run, launch, store).serve()
        return 0
    except QloraSpaceError as error:
        why = error.what
    except Exception as error:
        log.exception("Rank %d failed.", launch.rank)
        why = f"{type(error).__name__}: {error}".replace("\n", " ")
    store.set(failed_key(launch.rank), why[:_LAST_WORDS])
    return 1


def _beat(store: dist.Store, rank: int) -> None:
    """Say that this process lives; end it, whatever it waits for, when rank 0 has ended or is gone."""
    try:
        while not store.check([ENDED]):
            store.add(alive_key(rank), 1)
            time.sleep(_BEAT_SECONDS)
        time.sleep(_GRACE_SECONDS)
    except RuntimeError:
        log.warning("Rank 0 is gone.")
    finally:
        os._exit(0)


class _OtherRank:
    """A base, a copy of the adapter, and gradients."""

    def __init__(self, run: RunFolder, launch: Launch, store: dist.Store) -> None:
        self._run, self._launch, self._store = run, launch, store
        self._plan = run.plan()
        self._device = self._plan.hardware.device
        self._loss = torch.zeros(1, device=self._device)
        self._out_of_memory = False  # since the last weights

    def serve(self) -> None:
        """One order after the other."""
        for number in itertools.count():
            name, values = read_order(self._store.get(order_key(number)))
            match name:
                case "load":
                    self._load(Path(values["base_folder"]))
                    self._answer(number, DONE)
                    self._connect()
                case "get_ready":
                    self._get_ready(**values)
                    self._answer(number, DONE)
                case "take_weights":
                    self._take_weights()
                case "add_rows":
                    self._add(values["rows"][self._launch.rank], values["num_items"])
                case "report":
                    self._answer(number, OUT_OF_MEMORY if self._out_of_memory else DONE)
                case "sum":
                    for each in (self._gradients.flat, self._loss):
                        self._group.reduce(each, 0).wait()
                case "end":
                    return

    def _answer(self, number: int, text: str) -> None:
        self._store.set(answer_key(self._launch.rank, number), text)

    def _load(self, base_folder: Path) -> None:
        is_here = (base_folder / "config.json").is_file()  # else rank 0 is another machine
        self._base_folder = base_folder if is_here else fetch_base(self._plan.base, None)
        warming = warm_up_in_background(self._plan, self._base_folder)
        self._model: PeftModel = base_and_adapter(self._run, self._base_folder)
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if warming is not None:
            warming.join()

    def _connect(self) -> None:
        launch = self._launch
        self._group: Any = connect(open_store(launch), launch, self._device)
        check_group(self._group, launch.rank, launch.world_size, self._device)

    def _get_ready(self, *, is_fp8: bool, data_key: str) -> None:
        """Raises ModelError if this process would do another step than rank 0."""
        policies_file = self._run.home.policies_file(self._launch.rank)
        fast_step, why = attach(self._model, policies_file, on_cpu=self._device == "cpu")
        if fast_step is None:
            raise ModelError(f"The GPUs of this run do not agree. {why}", "Use one GPU.")
        if is_fp8:
            fast_step.switch_fp8(is_used=True)
        self._fast_step: FastStep = fast_step
        self._gradients = fast_step.fast.gradients
        if self._prepared.manifest.key != data_key:
            raise ModelError(
                f"{self._run.data_folder} has other rows here than on rank 0.",
                "Start all processes on the same run folder.",
            )

    @cached_property
    def _prepared(self) -> Prepared:
        return load_prepared(self._run.data_folder)

    @cached_property
    def _rows(self) -> TrainingRows:
        padding = load_tokenizer(self._base_folder).pad_token_id or 0
        dataset = Dataset.from_file(str(self._prepared.train_file))
        return TrainingRows(dataset, PackedCollator(pad_token_id=padding))

    def _take_weights(self) -> None:
        self._group.broadcast(self._gradients.flat, 0).wait()
        self._gradients.unpack_weights()
        self._gradients.start()
        self._loss.zero_()
        self._out_of_memory = False

    def _add(self, rows: list[int], num_items: float) -> None:
        """Running out of memory is said when a report is due; rank 0 then starts the step again with fewer rows."""
        if self._out_of_memory or not rows:
            return
        batch = self._rows.batch(rows)
        if not num_trained(batch):
            return
        try:
            self._loss += self._fast_step(batch.inputs, num_items)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._out_of_memory = True
        # Outside of `except`, so that nothing holds the tensors of the broken step.
        if self._out_of_memory:
            release_memory()
