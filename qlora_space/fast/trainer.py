"""speed_up(): the fast step in trl's SFTTrainer or transformers' Trainer, whose loop stays as it is.

    trainer = SFTTrainer(model, args=SFTConfig(...), train_dataset=rows, peft_config=LoraConfig(...))
    print(speed_up(trainer).text)
    trainer.train()

Only `training_step` is another one: it returns the same loss and leaves the same gradients in `.grad`. Accumulation,
clipping, optimizer, schedule, evaluation, checkpoints and callbacks are the trainer's.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer
from trl import SFTTrainer

from qlora_space.fast.batch import packed_inputs
from qlora_space.fast.limits import Unsupported
from qlora_space.fast.step import Attached, FastStep, attach

_IGNORED = -100
log = logging.getLogger(__name__)


def speed_up(
    trainer: Trainer, policies_file: Path | None = None, *, on_cpu: bool = False
) -> Attached:
    """Let a trainer that is not training yet take the fast step. Where it cannot: (None, why), and nothing is changed.

    Supported: `SFTTrainer` and `Trainer` with their own `compute_loss` and `training_step`, and models that `attach`
    takes; bf16 or fp32; padded, packed and padding-free batches. A batch that `packed_inputs` does not take is trained
    the plain way. Not supported: loss_type="dft", label smoothing, a loss function of one's own, NEFTune noise, fp16,
    several processes or GPUs.
    Adapter weights in 16 bits become fp32 first, and stay so: trl rounds those over a quantized base to bf16 (1.16,
    sft_trainer.py, "When using QLoRA"), in which small updates of Adam are lost.
    trl's `entropy`, `mean_token_accuracy` and `num_tokens` are not logged in training: the step has no logits to take
    the first two from.
    Calling `detach()` on the step gives the trainer its plain step back. See `attach` for policies_file and on_cpu.
    """
    try:
        model = _supported_model(trainer)
    except Unsupported as reason:
        return Attached(None, f"The plain path is used: {reason}.")
    before = [(p, p.data) for p in model.parameters() if p.requires_grad]
    for parameter, data in before:
        parameter.data = data.to(torch.promote_types(data.dtype, torch.float32))
    attached = attach(model, policies_file, on_cpu=on_cpu)
    if attached.step is None:
        for parameter, data in before:
            parameter.data = data
    else:
        _FastTraining(trainer, attached.step)
    return attached


def _supported_model(trainer: Trainer) -> PeftModel:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        raise Unsupported(f"{type(model).__name__} is not a peft model")
    _check_trainer(trainer)
    return model


def _check_trainer(trainer: Trainer) -> None:
    args, kind = trainer.args, type(trainer)
    methods = [(c.compute_loss, c.training_step) for c in (SFTTrainer, Trainer)]
    reasons = {
        f"{kind.__name__} has a loss or a step of its own": (
            (kind.compute_loss, kind.training_step) not in methods
        ),
        "the trainer has a compute_loss_func": trainer.compute_loss_func is not None,
        "the loss is not the mean over tokens": getattr(args, "loss_type", "nll") != "nll",
        "labels are smoothed": args.label_smoothing_factor > 0,
        "embeddings get NEFTune noise": args.neftune_noise_alpha is not None,
        "gradients in fp16 are scaled": args.fp16,
        "there is more than one process or GPU": args.world_size > 1 or args.n_gpu > 1,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise Unsupported(reason)


class _FastTraining:
    """Two methods that take the place of the trainer's own, which it calls where a step is not for the fast one."""

    def __init__(self, trainer: Trainer, step: FastStep) -> None:
        self._trainer, self._step = trainer, step
        self._plain_step, self._plain_evaluation = trainer.training_step, trainer.evaluation_loop
        self._has_warned = False
        trainer.training_step = self.training_step  # type: ignore[method-assign]
        trainer.evaluation_loop = self.evaluation_loop  # type: ignore[method-assign]

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As Trainer.training_step: the loss of a micro-batch, detached, after its gradients are added to `.grad`."""
        if not self._step.is_attached:
            return self._plain_step(model, inputs, num_items_in_batch)
        try:
            packed = packed_inputs(inputs)
        except Unsupported as reason:
            self._warn_once(reason)
            self._step.fast.gradients.begin()  # autograd adds to what the fast step adds to
            return self._plain_step(model, inputs, num_items_in_batch)
        model.train()
        optimizer = self._trainer.optimizer
        if callable(getattr(optimizer, "train", None)):  # those without a schedule
            optimizer.train()  # type: ignore[union-attr]
        if num_items_in_batch is None:  # the mean over micro-batches of their means
            trained = int((packed["labels"][:, 1:] != _IGNORED).sum())
            num_items_in_batch = trained * self._trainer.current_gradient_accumulation_steps
        return self._step(packed, num_items_in_batch)

    def _warn_once(self, reason: Unsupported) -> None:
        if not self._has_warned:
            log.warning("A batch takes the plain step, and so do others like it: %s.", reason)
        self._has_warned = True

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, after what the fast step holds is freed."""
        self._step.release()
        return self._plain_evaluation(*args, **kwargs)
