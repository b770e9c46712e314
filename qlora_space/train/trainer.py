"""trl's SFTTrainer, told by a Plan, with our data, our precision and our order of rows.

`train()` does one segment: from `first_step` on, with its own count from 0. One private method of transformers is
looked into, for the gradient norm; what a segment starts from is put in by `on_train_begin` (train/loop.py).
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from qlora_space.data import IGNORED_LABEL
from qlora_space.fast import attach
from qlora_space.model import compute_dtype, most_rows
from qlora_space.plan import Plan
from qlora_space.plan.eval_cost import LOSS_ROWS_AT_ONCE
from qlora_space.train.collator import PackedCollator
from qlora_space.train.data_parallel import Followers
from qlora_space.train.micro_batches import MicroBatches
from qlora_space.train.oom import accumulation, rows_per_step
from qlora_space.train.update import Update


class RunTrainer(SFTTrainer):
    """Rows are prepared already; adapters stay fp32; saving and evaluating are the loop's business."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: Plan,
        rows: Dataset,
        scratch_folder: Path,
        policies_file: Path | None = None,
        followers: Followers | None = None,
    ) -> None:
        self.tokens_seen = 0
        self.trained_tokens = 0
        self.plan = plan
        self.total_steps = total_steps(plan, len(rows))
        self.between_micro_steps: Callable[[], None] = lambda: None
        self.while_computing: Callable[[], None] = lambda: None  # after each launch
        self._loss: torch.Tensor | None = None  # of the update so far
        self._gradient_norm: torch.Tensor | None = None
        self._rate = 0.0
        self.idle_since: float | None = None
        self._rows, self._lengths = rows, _lengths(rows)
        self._peft_model = model
        pad: Any = tokenizer.pad_token_id
        self._collate = PackedCollator(pad_token_id=pad or 0)
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=_config(plan, self.total_steps, scratch_folder),
            train_dataset=rows,
            data_collator=self._collate,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)  # the figures are in the events
        # trl casts the adapter of a quantized base to bf16, which loses small updates (trl 1.16,
        # sft_trainer.py "When using QLoRA"). They go back to fp32 with the values they had.
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = weights[name].float()
        self.fast_step, self.step_text = None, ""
        if plan.step_kind == "fast":
            on_cpu = plan.hardware.device == "cpu"  # no plan of resolve() wants that
            self.fast_step, self.step_text = attach(model, policies_file, on_cpu=on_cpu)
        if self.fast_step is not None and plan.fp8:
            count = min(plan.per_device_train_batch_size, len(rows))
            first_rows: list[Any] = [rows[i] for i in range(count)]
            self.step_text += " " + self.fast_step.use_fp8(self._collate(first_rows))
        self._followers = None
        if followers is not None and self.fast_step is not None and followers.world > 1:
            followers.get_ready(self.fast_step)
            self._followers = followers
        elif followers is not None:  # the plain step is not shared
            followers.close()
        self.set_segment(0, plan.per_device_train_batch_size)

    def set_segment(self, first_step: int, micro_batch: int) -> None:
        """What the next `train()` does: steps `first_step` to the end, `micro_batch` rows at once."""
        self.micro_batch = micro_batch
        self.args.max_steps = self.total_steps - first_step
        self.args.gradient_accumulation_steps = accumulation(
            self.plan, micro_batch, self.num_processes
        )
        at_once = micro_batch * self.num_processes
        self._portions = MicroBatches(self._rows, self._collate, self.plan, first_step, at_once)

    def get_train_dataloader(self) -> MicroBatches:  # type: ignore[override]
        """On the CPU: training_step moves them. Has no length, so that a segment is one epoch."""
        return self._portions

    def create_scheduler(self, num_training_steps: int, optimizer=None):  # type: ignore[override]
        """Over the whole run, however few steps this segment has."""
        return super().create_scheduler(self.total_steps, optimizer)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device) -> tuple[list[Any], int]:
        """The portions of an update, and its trained tokens: a number here, as one on a GPU would be waited for."""
        portions = [next(epoch_iterator) for _ in range(num_batches)]
        trained = sum(int((p["labels"][:, 1:] != IGNORED_LABEL).sum()) for p in portions)
        return portions, trained

    def begin_update(self) -> None:
        self._loss, self._rate = None, float(self.lr_scheduler.get_last_lr()[0])  # type: ignore[union-attr]

    def training_step(self, model, inputs, num_items_in_batch=None):  # type: ignore[override]
        self.between_micro_steps()
        self.tokens_seen += inputs["input_ids"].numel()
        self.trained_tokens += int((inputs["labels"] != IGNORED_LABEL).sum())  # on the CPU still
        loss = self._micro_step(model, inputs, num_items_in_batch)
        self._loss = loss if self._loss is None else self._loss + loss
        return loss

    def _micro_step(self, model, inputs, num_items_in_batch) -> torch.Tensor:
        if self.fast_step is not None and self._followers is not None:
            return self._followers.micro_step(
                self.fast_step,
                inputs,
                num_items_in_batch,
                is_last=self.accelerator.sync_gradients,
                meanwhile=self._use_the_time,
            )
        if self.fast_step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self.fast_step(inputs, num_items_in_batch)
        self._use_the_time()
        return loss

    def _use_the_time(self) -> None:
        """Where a GPU computes, it is busy now, and this process is not."""
        self.while_computing()
        self._portions.read_ahead()

    def _get_grad_norm(self, model, grad_norm=None):
        """transformers keeps it to itself; what it logs, it waits for."""
        norm: Any = super()._get_grad_norm(model, grad_norm)
        self._gradient_norm = norm
        return norm

    def wait(self) -> None:
        """Until everything that is queued is done. `idle_since` is when that was, the first time since it was None."""
        if self.plan.hardware.device == "cuda":
            torch.cuda.synchronize()
        if self.idle_since is None:
            self.idle_since = time.monotonic()

    def end_update(self) -> Update:
        """When its optimizer step is queued: the GPU may not have come to it."""
        assert self._loss is not None
        assert self._gradient_norm is not None
        if self.fast_step is None:
            self.log({})  # trl collects figures of its own until it is asked to
        return Update.of(
            self._loss, self._gradient_norm, self._rate, self.tokens_seen, self.trained_tokens
        )

    def floating_point_ops(self, inputs) -> int:
        """Nobody reads it, and transformers counts all weights anew for it in each micro-step."""
        return 0

    def settle(self) -> None:
        """After an optimizer step: it was done on the gradients of all GPUs. Raises ModelError."""
        if self._followers is not None:
            self._followers.settle()

    def rehearse(self) -> None:
        """One update with the longest rows, so that memory runs out now or never. Changes everything."""
        lengths, at_once = self._lengths, self.micro_batch * self.num_processes
        longest = sorted(range(len(lengths)), key=lengths.__getitem__)[-at_once:]
        rows: list[Any] = [self._rows[i] for i in longest]
        batch = self._collate(rows)
        optimizer: Any = self.optimizer
        optimizer.zero_grad()  # what a broken step left
        self.current_gradient_accumulation_steps = 1
        self.accelerator.gradient_state._set_sync_gradients(True)  # as transformers' loop does
        self.training_step(self.model, batch, batch["labels"].ne(IGNORED_LABEL).sum())
        optimizer.step()
        self.settle()
        optimizer.zero_grad()

    @property
    def num_processes(self) -> int:
        """GPUs that share a step now, however many were planned."""
        return 1 if self._followers is None else self._followers.world

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def longest_row(self) -> int:
        return max(self._lengths)

    def precision(self) -> AbstractContextManager[None]:
        """That of training, for whoever runs the model: accelerate puts it into the model itself only in `train`,
        which a run that is resumed after its last step never calls. Makes room: the fast step's captured steps hold
        memory that is needed now.
        """
        if self.fast_step is not None:
            self.fast_step.release()
        return self.accelerator.autocast()

    def mean_loss(self, rows: Dataset) -> float:
        """Nats per trained token over all rows, exact whatever the batch size."""
        on_gpu = self.plan.hardware.device == "cuda"
        most_tokens = self.micro_batch * self.longest_row if on_gpu else sys.maxsize  # known to fit
        total, count = 0.0, 0
        model = self._peft_model
        was_training = model.training
        model.eval()
        try:
            at_once = self.args.per_device_eval_batch_size
            for batch in _batches(rows, at_once, most_tokens, model):
                self.between_micro_steps()
                inputs = self._prepare_inputs(self._collate(batch))
                with torch.no_grad(), self.precision():
                    output = model(**inputs, fused_lm_head=True)
                total -= output.log_probs.double().sum().item()
                count += int(output.label_mask.sum())
        finally:
            model.train(was_training)
        return total / max(count, 1)


def total_steps(plan: Plan, num_rows: int) -> int:
    """Optimizer steps of the whole run: `max_steps`, or as many as the epochs need (the last may go over)."""
    if plan.max_steps > 0:
        return plan.max_steps
    return max(1, -int(-num_rows * plan.num_train_epochs // rows_per_step(plan)))


def _lengths(rows: Dataset) -> list[int]:
    """Tokens of each row, without making Python lists of them."""
    compute: Any = pyarrow.compute  # its functions are made when it is imported
    return compute.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


def _batches(rows: Dataset, most: int, most_tokens: int, model: PeftModel) -> Iterator[list]:
    """Rows of like length together, so that little is padding; longest first."""
    lengths = _lengths(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    while order:
        longest = lengths[order[-1]]
        count = max(1, min(most, most_tokens // longest, most_rows(model, longest)))
        order, portion = order[:-count], order[-count:]
        yield [rows[i] for i in portion]


def _config(plan: Plan, steps: int, scratch_folder: Path) -> SFTConfig:
    on_gpu = plan.hardware.device == "cuda"
    dtype = compute_dtype(plan.hardware.device)
    return SFTConfig(
        output_dir=str(scratch_folder),
        max_steps=steps,
        per_device_train_batch_size=plan.per_device_train_batch_size,
        per_device_eval_batch_size=LOSS_ROWS_AT_ONCE[plan.hardware.device],
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        # Fused: a few launches for all weights, and no temporary copies of them.
        optim="adamw_torch_fused" if on_gpu and plan.optim == "adamw_torch" else plan.optim,
        gradient_checkpointing=plan.gradient_checkpointing,
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=not on_gpu,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        logging_strategy="no",  # it would wait for the GPU after each step (train/update.py)
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
