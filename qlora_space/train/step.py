"""The training step: what adds the gradients of one micro-batch to the adapter's. Plain, fast, or shared by GPUs."""

from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from transformers import Trainer

from qlora_space.fast import FastStep, attach
from qlora_space.plan import Plan
from qlora_space.train.batches import Batch, TrainingRows
from qlora_space.train.data_parallel import Ranks

Tensor = torch.Tensor


class Step(Protocol):
    """One optimizer step is: `add_gradients` of each micro-batch, `finish`, the optimizer's step, `synchronize`."""

    num_processes: int  # GPUs that share each micro-batch

    @property
    def defers_metrics(self) -> bool:
        """Whether the device still computes when `add_gradients` returns."""
        ...

    def add_gradients(self, batch: Batch, num_items: int, num_batches: int) -> Tensor:
        """Loss of a micro-batch (B, S) on the CPU over the `num_items` trained tokens of the whole step, which has
        `num_batches`; its gradients are added to every adapter weight's `.grad`. Raises torch.OutOfMemoryError."""
        ...

    def finish(self, loss: Tensor) -> Tensor:
        """After the last micro-batch: loss and gradients become those of all GPUs. Raises as before, or ModelError."""
        ...

    def synchronize(self) -> None:
        """After the optimizer step was queued: wait until its gradients were complete. Raises ModelError."""
        ...

    def release(self) -> None:
        """Give back memory that is kept from step to step, for whoever uses the model in between."""
        ...


class PlainStep:
    """The `training_step` of one of trl's trainers: its loss, autograd's backward."""

    defers_metrics = False
    num_processes = 1

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def add_gradients(self, batch: Batch, num_items: int, num_batches: int) -> Tensor:
        trainer = self._trainer
        trainer.current_gradient_accumulation_steps = num_batches
        return trainer.training_step(trainer.model, batch.inputs, num_items)  # type: ignore[arg-type]

    def finish(self, loss: Tensor) -> Tensor:
        self._trainer.log({})  # trl collects metrics of its own until they are logged
        return loss

    def synchronize(self) -> None: ...

    def release(self) -> None: ...


class FusedStep:
    """The fused forward and backward of qlora_space.fast, on one GPU."""

    num_processes = 1

    def __init__(self, fast_step: FastStep) -> None:
        self.fast_step = fast_step

    @property
    def defers_metrics(self) -> bool:
        return self.fast_step.fast.device.type == "cuda"

    def add_gradients(self, batch: Batch, num_items: int, num_batches: int) -> Tensor:
        return self.fast_step(batch.inputs, num_items)

    def finish(self, loss: Tensor) -> Tensor:
        return loss

    def synchronize(self) -> None: ...

    def release(self) -> None:
        self.fast_step.release()


class SharedStep(FusedStep):
    """The fused step on several GPUs, each with a share of every micro-batch's rows (train/data_parallel.py)."""

    def __init__(self, fast_step: FastStep, ranks: Ranks) -> None:
        super().__init__(fast_step)
        self._ranks = ranks
        self.num_processes = ranks.world

    def add_gradients(self, batch: Batch, num_items: int, num_batches: int) -> Tensor:
        return self._ranks.add_gradients(self.fast_step, batch, num_items)

    def finish(self, loss: Tensor) -> Tensor:
        return self._ranks.sum_gradients(self.fast_step, loss)

    def synchronize(self) -> None:
        self._ranks.synchronize()


def make_step(
    trainer: Trainer,
    model: PeftModel,
    plan: Plan,
    rows: TrainingRows,
    policies_file: Path,
    ranks: Ranks,
    data_key: str,
) -> tuple[Step, str]:
    """The step of the plan, or the plain one where the fast one does not apply, and a sentence that says which.

    policies_file: where the activation policies that were measured are kept. Raises ModelError if another GPU is lost.
    """
    fast_step, text = None, ""
    if plan.step_kind == "fast":
        on_cpu = plan.hardware.device == "cpu"  # no plan of resolve() wants that
        fast_step, text = attach(model, policies_file, on_cpu=on_cpu)
    if fast_step is None:  # the plain step is not shared
        ranks.close()
        return PlainStep(trainer), text
    if plan.fp8:
        text += " " + fast_step.use_fp8(rows.first(plan.per_device_train_batch_size).inputs)
    if ranks.world == 1:
        return FusedStep(fast_step), text
    ranks.get_ready(fast_step, data_key)
    return SharedStep(fast_step, ranks), text
