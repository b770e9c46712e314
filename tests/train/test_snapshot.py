"""What is captured comes back bit for bit, from memory and from disk; what is damaged is never used."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from qlora_space.core import atomic
from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.train import checkpoint
from qlora_space.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from qlora_space.train.snapshot import (
    Progress,
    Rng,
    Snapshot,
    TrainState,
    adapter_weights,
    capture,
    restore,
    snapshot_bytes,
    untouched_rng,
)
from tests.train.conftest import Session

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": torch.optim.AdamW,
    "paged_adamw_8bit": bnb.optim.PagedAdamW8bit,
    "paged_adamw_32bit": bnb.optim.PagedAdamW32bit,
}


def fresh(session: Session, optim: str = "adamw_torch", step: int = 1) -> TrainState:
    """The state of a training on the real adapter; gradients are drawn instead of computed."""
    weights = [p for p in session.model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[optim](weights, lr=1e-2)
    return TrainState(
        model=session.model,
        optimizer=optimizer,
        lr_scheduler=get_cosine_schedule_with_warmup(optimizer, 2, 20),
        accelerator=session.state.accelerator,
        total_steps=20,
        progress=Progress(step=step, micro_batch=2),
    )


def captured(state: TrainState, step: int, **changed: Any) -> Snapshot:
    state.progress = Progress(step=step, micro_batch=2, **changed)
    return capture(state)


def go(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        for weight in state.model.parameters():
            if weight.requires_grad:
                weight.grad = torch.randn_like(weight)
        state.optimizer.step()
        state.lr_scheduler.step()
        state.model.zero_grad()


def bits(state: TrainState) -> dict[str, bytes]:
    return {
        name: weight.detach().numpy().tobytes()
        for name, weight in adapter_weights(state.model).items()
    }


@pytest.fixture
def kept(session: Session) -> Iterator[Session]:
    before = {n: w.clone() for n, w in adapter_weights(session.model).items()}
    yield session
    for name, weight in adapter_weights(session.model).items():
        weight.data.copy_(before[name])


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_going_on_from_disk_in_a_fresh_optimizer_is_bit_identical(
    kept: Session, tmp_path: Path, optim: str
) -> None:
    state = fresh(kept, optim)
    go(state, 3)
    snapshot = captured(state, 3)
    save_checkpoint(kept.model, snapshot, tmp_path)
    go(state, 3)
    wanted = bits(state)
    again = fresh(kept, optim)
    go(again, 1)  # its own state must not survive
    restore(again, load_checkpoint(tmp_path / "step-000003"))
    go(again, 3)
    assert bits(again) == wanted
    assert again.lr_scheduler.get_last_lr() == state.lr_scheduler.get_last_lr()


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_bytes_of_a_snapshot_are_known_without_one(kept: Session, optim: str) -> None:
    state = fresh(kept, optim)
    go(state, 1)
    taken = captured(state, 1)
    assert taken.optimizer
    assert snapshot_bytes(state) == taken.num_bytes


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_going_back_to_before_the_first_step_is_a_fresh_optimizer(
    kept: Session, optim: str
) -> None:
    state = fresh(kept, optim)
    start = captured(state, 0)
    assert start.optimizer == {}
    torch.manual_seed(1)
    go(state, 3)
    wanted = bits(state)
    restore(state, start)
    torch.manual_seed(1)
    go(state, 3)
    assert bits(state) == wanted


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist())  # noqa: E731
    before = Rng.now()
    first = draw()
    before.set()
    assert draw() == first
    before.set()
    with untouched_rng():
        draw()
    assert draw() == first


def written(kept: Session, folder: Path, *steps: int) -> list[Snapshot]:
    state = fresh(kept)
    snapshots = []
    for step in steps:
        go(state, 1)
        snapshots.append(captured(state, step))
        save_checkpoint(kept.model, snapshots[-1], folder)
    return snapshots


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty folder": lambda folder: [p.unlink() for p in folder.iterdir()],
    "no state": lambda folder: (folder / "state.json").unlink(),
    "empty state": lambda folder: (folder / "state.json").write_text(""),
    "no optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no scheduler": lambda folder: (folder / "scalars.json").unlink(),
    "no generators": lambda folder: (folder / "rng.safetensors").unlink(),
    "cut weights": lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "one flipped bit": lambda folder: flip(folder / "adapter_model.safetensors", -1),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "another step's": lambda folder: folder.rename(folder.with_name("step-000009")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_is_skipped_with_its_reason(
    kept: Session, tmp_path: Path, damage: str
) -> None:
    first, _ = written(kept, tmp_path, 1, 2)
    DAMAGE[damage](tmp_path / "step-000002")
    found, skipped = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.progress == first.progress
    assert len(skipped) == 1
    assert skipped[0].startswith("step-00000")


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(kept: Session, tmp_path: Path) -> None:
    _, second = written(kept, tmp_path, 1, 2)
    folder, rng = tmp_path / "step-000002", random.Random(7)
    for file in sorted(folder.iterdir()):
        for place in {rng.randrange(file.stat().st_size) for _ in range(12)}:
            flip(file, place)
            found, skipped = newest_checkpoint(tmp_path)
            assert found is not None
            if not skipped:  # such as a blank of the manifest that became another
                assert file.name in ("manifest.json",)
                assert found.progress == second.progress
                assert all(torch.equal(found.adapter[n], t) for n, t in second.adapter.items())
            else:
                assert found.progress.step == 1
            flip(file, place)
    assert newest_checkpoint(tmp_path)[1] == []


class Faulty:
    """os, whose n-th writing call fails, or kills the process after half of it."""

    def __init__(self, at: int, kill: bool) -> None:
        self.left, self.kill, self.calls = at, kill, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("write", "fsync", "rename", "makedirs", "open"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls != self.left:
                return real(*args, **kwargs)
            if name == "write":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            if self.kill:
                os._exit(9)
            raise OSError(28, os.strerror(28))

        return call


@pytest.mark.parametrize("kill", [False, True], ids=["refused", "killed"])
def test_a_save_that_breaks_off_at_any_call_leaves_a_whole_newest_checkpoint(
    kept: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    written(kept, tmp_path / "kept", 1, 2)
    third = captured(fresh(kept), 3)
    calls = Faulty(-1, False)
    for module in (atomic, checkpoint):
        monkeypatch.setattr(module, "os", calls)
    shutil.copytree(tmp_path / "kept", tmp_path / "count")
    save_checkpoint(kept.model, third, tmp_path / "count")
    assert calls.calls > 20
    for at in range(1, calls.calls + 1):
        folder = tmp_path / f"at{at}"
        shutil.copytree(tmp_path / "kept", folder)
        faulty = Faulty(at, kill)
        for module in (atomic, checkpoint):
            monkeypatch.setattr(module, "os", faulty)
        if kill:
            child = os.fork()
            if not child:
                save_checkpoint(kept.model, third, folder)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        else:
            with contextlib.suppress(DiskFull):
                save_checkpoint(kept.model, third, folder)
            assert not list(folder.glob(".*.part")), at
        for module in (atomic, checkpoint):
            monkeypatch.setattr(module, "os", os)
        found, skipped = newest_checkpoint(folder)
        assert skipped == [], at
        assert found is not None
        assert found.progress.step in (2, 3)
        shutil.rmtree(folder)


class Recorder:
    """os, that notes what is synced and renamed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, *args: Any) -> int:
        descriptor = os.open(path, *args)
        self._paths[descriptor] = Path(path).name
        return descriptor

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self.calls.append(("sync", self._paths[descriptor]))

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)
        self.calls.append(("rename", new.name))


def test_everything_is_synced_before_the_name_appears(
    kept: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    for module in (atomic, checkpoint):
        monkeypatch.setattr(module, "os", recorder)
    written(kept, tmp_path, 1)
    monkeypatch.undo()
    at = recorder.calls.index(("rename", "step-000001"))
    files = {path.name for path in (tmp_path / "step-000001").iterdir()}
    assert len(files) == 7
    synced = [name for what, name in recorder.calls[:at] if what == "sync"]
    assert set(synced[:-1]) == files
    assert synced[-1].startswith(".step-000001.")
    assert recorder.calls[at + 1] == ("sync", tmp_path.name)


def test_a_checkpoint_of_another_rank_is_refused(kept: Session) -> None:
    state = fresh(kept)
    snapshot = captured(state, 0)
    name = next(iter(snapshot.adapter))
    snapshot.adapter[name] = snapshot.adapter[name][:1]
    with pytest.raises(ModelError, match="does not fit this run"):
        restore(state, snapshot)


def test_weights_that_are_not_finite_are_never_a_checkpoint(kept: Session, tmp_path: Path) -> None:
    snapshot = captured(fresh(kept), 4)
    next(iter(snapshot.adapter.values()))[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite after step 4"):
        save_checkpoint(kept.model, snapshot, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_newest_two_and_the_best_are_kept(kept: Session, tmp_path: Path) -> None:
    snapshot = captured(fresh(kept), 0)
    for step in (1, 2, 3, 4):
        progress = Progress(step=step, micro_batch=1, best_step=1)
        moved = Snapshot(
            progress, snapshot.adapter, snapshot.optimizer, snapshot.rng, snapshot.scalars
        )
        save_checkpoint(kept.model, moved, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000001",
        "step-000003",
        "step-000004",
    ]
    assert json.loads((tmp_path / "step-000004/state.json").read_text())["best_step"] == 1


def test_later_steps_than_the_one_that_is_saved_are_of_a_past_that_was_left(
    kept: Session, tmp_path: Path
) -> None:
    written(kept, tmp_path, 1, 30, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]
