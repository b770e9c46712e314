"""The state of a training, and snapshots of it in host memory: what a checkpoint holds and a rollback needs.

Tensors keep their dtype and bits. Restoring a snapshot into the state of a run with the same plan and going on gives
the same numbers as not having stopped.
"""

import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict

from qlora_space.core.errors import ModelError
from qlora_space.train.guards import GuardState

Tensors = dict[str, torch.Tensor]


class Progress(BaseModel):
    """What a run has reached: `step` optimizer steps are done, so that is the number of the next one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    tokens_seen: int = 0
    trained_tokens: int = 0
    train_seconds: float = 0.0
    eval_losses: dict[int, float] = {}
    best_step: int | None = None
    micro_batch: int
    rollbacks: int = 0
    guards: GuardState = GuardState()

    def after_step(self, seconds: float, **changed: Any) -> "Progress":
        """With one more optimizer step done, which took `seconds`."""
        changed |= {"step": self.step + 1, "train_seconds": self.train_seconds + seconds}
        return self.model_copy(update=changed)

    def after_evaluation(self, loss: float) -> "Progress":
        """With the held-out loss of this step. Step 0 is the base itself, which is never the best."""
        losses = self.eval_losses | {self.step: loss}
        trained = {step: value for step, value in losses.items() if step}
        best = min(trained, key=trained.__getitem__, default=None)
        return self.model_copy(update={"eval_losses": losses, "best_step": best})

    def has_stalled(self, patience: int) -> bool:
        """No better held-out loss in the last `patience` evaluations; never with 0."""
        best = self.best_step
        if not patience or best is None:
            return False
        return sum(step > best for step in self.eval_losses) >= patience


@dataclass(frozen=True)
class Snapshot:
    """CPU copies. `adapter` has peft's names; `optimizer` and `rng` ours; `scalars` is JSON."""

    progress: Progress
    adapter: Tensors
    optimizer: Tensors
    rng: Tensors
    scalars: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.adapter) + num_bytes(self.optimizer) + num_bytes(self.rng)

    def has_only_finite_weights(self) -> bool:
        """Of each tensor the extremes: they are NaN if one value is."""
        extremes = (torch.stack(torch.aminmax(t)) for t in self.adapter.values())
        return all(bool(torch.isfinite(two).all()) for two in extremes)


@dataclass
class TrainState:
    """All that training changes, and where it stands. The loop moves it on; recovery puts it back."""

    model: PeftModel
    optimizer: Any  # accelerate's AcceleratedOptimizer
    lr_scheduler: Any
    accelerator: Accelerator
    total_steps: int
    progress: Progress
    # The generators as the step under way began, which begins again like that; None between two steps.
    step_rng: "Rng | None" = None
    idle_since: float | None = None  # monotonic seconds; see `wait`

    def wait(self) -> None:
        """Until the device has done all that is queued; `idle_since` is when that was, unless it is set already."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.idle_since is None:
            self.idle_since = time.monotonic()

    def optimizer_step(self) -> float:
        """Step optimizer and schedule and drop the gradients. Returns the learning rate of this step."""
        learning_rate = float(self.lr_scheduler.get_last_lr()[0])
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:  # by the loss scaler, in fp16
            self.lr_scheduler.step()
        self.model.zero_grad()
        self.step_rng = None
        return learning_rate

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to `max_norm` (0: never); returns their norm before, a scalar on the device."""
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm or math.inf)
        return norm


def capture(state: TrainState) -> Snapshot:
    """Copy to host memory. A step that is under way is left out: it begins again with the generators as they were.

    Before the first step there are no optimizer states: those that are there, of a trial step, are zeros.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # paged optimizer states are read by the CPU
    states, scalars = _optimizer_state(state) if state.progress.step else ({}, {})
    optimizer = {name: _copy(t) for name, t in states.items()}
    scheduler = state.lr_scheduler.state_dict()
    scheduler.pop("lr_lambdas", None)
    scaler = state.accelerator.scaler
    rng = state.step_rng or Rng.now()
    return Snapshot(
        progress=state.progress,
        adapter={n: _copy(t) for n, t in adapter_weights(state.model).items()},
        optimizer=optimizer,
        rng=rng.tensors,
        scalars={
            "optimizer": scalars,
            "learning_rates": [group["lr"] for group in state.optimizer.param_groups],
            "scheduler": scheduler,
            "scaler": scaler.state_dict() if scaler else {},
            "rng": rng.scalars,
        },
    )


def restore(state: TrainState, snapshot: Snapshot) -> None:
    """Put everything back but `progress`. Raises ModelError if it does not belong to this run."""
    restore_adapter(state.model, snapshot.adapter)
    _restore_optimizer(state, snapshot)
    state.lr_scheduler.load_state_dict(
        state.lr_scheduler.state_dict() | snapshot.scalars["scheduler"]
    )
    rates = snapshot.scalars["learning_rates"]
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    if state.accelerator.scaler:
        state.accelerator.scaler.load_state_dict(snapshot.scalars["scaler"])
    state.model.zero_grad()
    Rng(snapshot.rng, snapshot.scalars["rng"]).set()


def num_bytes(tensors: Tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def snapshot_bytes(state: TrainState) -> int:
    """Of a snapshot after a step; the optimizer must have its states."""
    states, _ = _optimizer_state(state)
    parts = (adapter_weights(state.model), states, Rng.now().tensors)
    return sum(num_bytes(part) for part in parts)


def adapter_weights(model: Any) -> Tensors:
    """By peft's names; the tensors are those of the model. Does not ask the Hub for the base's vocabulary."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


@torch.no_grad()
def restore_adapter(model: Any, adapter: Tensors) -> None:
    """Raises ModelError unless names and shapes are exactly those of the model."""
    _copy_into(adapter_weights(model), adapter)


def halve_learning_rate(state: TrainState) -> float:
    """From here on and for every later step. Returns the new peak."""
    scheduler = state.lr_scheduler
    scheduler.base_lrs = [rate / 2 for rate in scheduler.base_lrs]
    for group in state.optimizer.param_groups:
        group["lr"] /= 2
    last = {"_last_lr": [group["lr"] for group in state.optimizer.param_groups]}
    scheduler.load_state_dict(scheduler.state_dict() | last)  # get_last_lr() is what metrics report
    return scheduler.base_lrs[0]


@dataclass(frozen=True)
class Rng:
    """State of every generator that a training may draw from."""

    tensors: Tensors
    scalars: dict[str, Any]

    @classmethod
    def now(cls) -> "Rng":
        """Reads host memory only: a GPU's generator is a seed and an offset there."""
        numpy_state: Any = np.random.get_state(legacy=True)
        name, keys, *numpy_rest = numpy_state
        version, words, gauss = random.getstate()
        tensors = {
            "torch": torch.get_rng_state(),
            "numpy": torch.from_numpy(keys.astype(np.int64)),
            "python": torch.tensor(words, dtype=torch.int64),
        }
        if torch.cuda.is_available():
            states = torch.cuda.get_rng_state_all()
            tensors |= {f"cuda.{i}": state for i, state in enumerate(states)}
        return cls(tensors, {"numpy": [name, *numpy_rest], "python": [version, gauss]})

    def set(self) -> None:
        name, *rest = self.scalars["numpy"]
        np.random.set_state((name, self.tensors["numpy"].numpy().astype(np.uint32), *rest))
        version, gauss = self.scalars["python"]
        random.setstate((version, tuple(self.tensors["python"].tolist()), gauss))
        torch.set_rng_state(self.tensors["torch"])
        for name, state in self.tensors.items():
            if name.startswith("cuda.") and torch.cuda.is_available():
                torch.cuda.set_rng_state(state, int(name.removeprefix("cuda.")))


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Whatever is drawn inside, the training does not notice."""
    before = Rng.now()
    try:
        yield
    finally:
        before.set()


def _trained(state: TrainState) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in state.model.named_parameters() if p.requires_grad}


def _optimizer_state(state: TrainState) -> tuple[Tensors, dict[str, Any]]:
    """Its own tensors and numbers by 'parameter.state', whatever the optimizer calls its states."""
    states = state.optimizer.state
    tensors: Tensors = {}
    scalars: dict[str, Any] = {}
    for name, parameter in _trained(state).items():
        for key, value in states.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}.{key}"] = value
            else:
                scalars[f"{name}.{key}"] = value
    return tensors, scalars


@torch.no_grad()
def _restore_optimizer(state: TrainState, snapshot: Snapshot) -> None:
    optimizer, parameters = state.optimizer, _trained(state)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # paged states are written by the CPU
    if not snapshot.optimizer:
        _start_over(optimizer.state.values())
        return
    _make_states(optimizer, parameters, snapshot.optimizer)
    here = {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }
    _copy_into(here, snapshot.optimizer)
    for full_name, value in snapshot.scalars["optimizer"].items():
        name, key = full_name.rsplit(".", 1)
        optimizer.state[parameters[name]][key] = value
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _start_over(states: Iterable[dict[str, Any]]) -> None:
    """As before the first step: zeros, but for the maps of 8-bit values. In place: bitsandbytes 0.50 never
    gives back the memory of a paged state (functional.py, get_paged).
    """
    for state in states:
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                if not key.startswith("qmap"):
                    value.zero_()
            elif key == "step":
                state[key] = 0


def _make_states(
    optimizer: Any, parameters: Mapping[str, torch.nn.Parameter], saved: Tensors
) -> None:
    """Empty states for parameters that have none yet; bitsandbytes makes its own, some of them paged."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    places = {
        p: (group, i, j)
        for i, group in enumerate(inner.param_groups)
        for j, p in enumerate(group["params"])
    }
    if hasattr(inner, "init_state") and not inner.initialized:
        inner.check_overrides()
        inner.initialized = True
    for name, parameter in parameters.items():
        if inner.state.get(parameter):
            continue
        if hasattr(inner, "init_state"):
            group, i, j = places[parameter]
            inner.init_state(group, parameter, i, j)
            continue
        prefix = f"{name}."
        # torch keeps `step` on the CPU unless it is fused, everything else beside the weights
        place = parameter.device if inner.defaults.get("fused") else "cpu"
        inner.state[parameter] = {
            key.removeprefix(prefix): torch.empty_like(value, device=parameter.device if value.dim() else place)
            for key, value in saved.items()
            if key.startswith(prefix)
        }  # fmt: skip


def _copy_into(here: Mapping[str, torch.Tensor], saved: Tensors) -> None:
    wrong = set(here.keys() ^ saved.keys())
    wrong |= {n for n in here.keys() & saved.keys() if here[n].shape != saved[n].shape}
    if wrong:
        raise ModelError(
            f"The checkpoint does not fit this run: {len(wrong)} tensors differ, such as {min(wrong)!r}.",
            "Start a new run.",
        )
    for name, value in here.items():
        value.copy_(saved[name])


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
