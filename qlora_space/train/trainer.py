"""trl's SFTTrainer, told by a Plan, with our data, our precision and our events."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from qlora_space.data import IGNORED_LABEL
from qlora_space.plan import Plan
from qlora_space.train.collator import PackedCollator


class RunTrainer(SFTTrainer):
    """Rows are prepared already; adapters stay fp32; saving and evaluating are the callback's business."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        rows: Dataset,
        scratch_folder: Path,
    ) -> None:
        self.tokens_seen = 0
        self.trained_tokens = 0
        self._peft_model = model
        self._collate = PackedCollator(pad_token_id=int(tokenizer.pad_token_id or 0))  # type: ignore[arg-type]
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=_config(plan, scratch_folder),
            train_dataset=rows,
            data_collator=self._collate,
            processing_class=tokenizer,
        )
        self.remove_callback(
            PrinterCallback
        )  # the figures are in the events; the log is for what goes wrong
        # trl casts the adapter of a quantized base to bf16, which loses small updates (trl 1.16,
        # sft_trainer.py "When using QLoRA"). They go back to fp32 with the values they had.
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = weights[name].float()

    def training_step(self, model, inputs, *args, **kwargs):  # type: ignore[override]
        self.tokens_seen += inputs["input_ids"].numel()
        self.trained_tokens += int((inputs["labels"] != IGNORED_LABEL).sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def mean_loss(self, rows: Dataset) -> float:
        """Nats per trained token over all rows, exact whatever the batch size."""
        batch_size = self.args.per_device_eval_batch_size
        total, count = 0.0, 0
        model = self._peft_model
        was_training = model.training
        model.eval()
        for batch in _batches(rows, batch_size):
            inputs = self._prepare_inputs(self._collate(batch))
            with torch.no_grad(), self.compute_loss_context_manager():
                output = model(**inputs, fused_lm_head=True)
            total -= output.log_probs.double().sum().item()
            count += int(output.label_mask.sum())
        model.train(was_training)
        return total / max(count, 1)


def _batches(rows: Dataset, size: int) -> Iterator[list]:
    """Rows of like length together, so that little is padding."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield [rows[i] for i in order[start : start + size]]


def _config(plan: Plan, scratch_folder: Path) -> SFTConfig:
    on_gpu = plan.hardware.device == "cuda"
    bf16 = plan.hardware.has_bf16
    return SFTConfig(
        output_dir=str(scratch_folder),
        num_train_epochs=plan.num_train_epochs,
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.per_device_train_batch_size,
        per_device_eval_batch_size=8 if on_gpu else 16,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        optim=plan.optim,
        gradient_checkpointing=plan.gradient_checkpointing,
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=not on_gpu,
        bf16=bf16,
        fp16=not bf16,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


class StepCallback(TrainerCallback):
    """Calls back after each logged step with its figures, and stops the trainer when told so."""

    def __init__(
        self,
        on_step: Callable[[int, int, dict[str, float]], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._on_step = on_step
        self._should_stop = should_stop
        self._trainer: RunTrainer | None = None
        self._last = (time.monotonic(), 0)

    def attach(self, trainer: RunTrainer) -> None:
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._last = (time.monotonic(), 0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._should_stop():
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not logs or "loss" not in logs or self._trainer is None:
            return
        now, tokens = time.monotonic(), self._trainer.tokens_seen
        then, tokens_then = self._last
        values = {
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs.get("grad_norm", 0.0)),
            "epoch": float(logs.get("epoch", 0.0)),
            "tokens_per_second": (tokens - tokens_then) / max(now - then, 1e-9),
        }
        self._on_step(state.global_step, state.max_steps, values)
        self._last = (time.monotonic(), tokens)
