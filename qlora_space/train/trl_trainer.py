"""trl's trainer as the source of loss, optimizer, schedule and mixed precision. The loop is ours (train/loop.py)."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer
from trl import SFTConfig, SFTTrainer

from qlora_space.model import compute_dtype
from qlora_space.plan import Plan
from qlora_space.train.batches import TrainingRows
from qlora_space.train.snapshot import Progress, TrainState


def make_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    rows: TrainingRows,
    scratch_folder: Path,
) -> Trainer:
    """An SFTTrainer over prepared rows whose `training_step` adds gradients; adapters keep their fp32 values.

    Another of trl's trainers with such a `training_step` would do as well. Its `train()` is never called.
    """
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trainer = SFTTrainer(
        model=model,
        args=_config(plan, scratch_folder),
        train_dataset=rows.rows,
        data_collator=rows.collate,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # metrics go to the run's events
    # trl casts the adapter of a quantized base to bf16, which loses small updates (trl 1.16,
    # sft_trainer.py "When using QLoRA"). They go back to fp32 with the values they had.
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = weights[name].float()
    return trainer


def prepare_for_training(trainer: Trainer, plan: Plan, total_steps: int) -> TrainState:
    """What transformers' `train()` does before its first step: activation checkpointing, optimizer, schedule, autocast.

    The schedule spans `total_steps`, wherever the run starts.
    """
    model: Any = trainer.model
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.create_optimizer()
    # Autocast goes into model.forward; the optimizer skips steps whose scaled gradients overflowed (fp16).
    _, trainer.optimizer = trainer.accelerator.prepare(model, trainer.optimizer)
    trainer.create_scheduler(total_steps)
    model.zero_grad()
    return TrainState(
        model=model,
        optimizer=trainer.optimizer,
        lr_scheduler=trainer.lr_scheduler,
        accelerator=trainer.accelerator,
        total_steps=total_steps,
        progress=Progress(micro_batch=plan.per_device_train_batch_size),
    )


def _checkpointing_kwargs(plan: Plan) -> dict[str, bool] | None:
    """bitsandbytes (0.50.2, autograd/_functions.py MatMul8bitLt) keeps the input of each 8-bit linear where torch's
    default checkpointing cannot drop it: 1.3 GiB for 3,584 tokens of a Qwen3-0.6B. Reentrant checkpointing runs layers
    without a gradient first, so that nothing is kept."""
    return {"use_reentrant": True} if plan.bits == 8 else None


def _config(plan: Plan, scratch_folder: Path) -> SFTConfig:
    on_gpu = plan.hardware.device == "cuda"
    dtype = compute_dtype(plan.hardware.device)
    return SFTConfig(
        output_dir=str(scratch_folder),
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        # Fused: a few launches for all weights, and no temporary copies of them.
        optim="adamw_torch_fused" if on_gpu and plan.optim == "adamw_torch" else plan.optim,
        gradient_checkpointing=plan.gradient_checkpointing,
        gradient_checkpointing_kwargs=_checkpointing_kwargs(plan),
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=not on_gpu,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
