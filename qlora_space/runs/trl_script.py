"""The text of a script that repeats a run with transformers, peft and trl alone."""

from qlora_space.plan import Plan

_SCRIPT = '''"""{title}

pip install {packages}
python train.py        # beside train.arrow: the prepared tokens of the run
"""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

HERE = Path(__file__).parent
BASE = {base}
BITS, SEED, STEPS, ROWS_PER_STEP = {bits}, {seed}, {steps}, {rows_per_step}
ON_GPU = torch.cuda.is_available()


def compute_dtype():
    """bf16 where the device multiplies it itself; else fp16 on a GPU, fp32 on a CPU."""
    if ON_GPU:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if any(features.get(n) for n in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


DTYPE = compute_dtype()


def load_base():
    """Frozen; linears in BITS, everything else in DTYPE."""
    quantization = None
    if BITS == 4:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=DTYPE
        )
    elif BITS == 8:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        *BASE[:1], **BASE[1], quantization_config=quantization, dtype=DTYPE,
        device_map={{"": "cuda" if ON_GPU else "cpu"}}, attn_implementation={attention},
    )
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes would repack the weights for a kernel without a gradient.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.requires_grad_(False)


def add_adapter(model):
    torch.manual_seed(SEED)
    return get_peft_model(model, LoraConfig(
        r={r}, lora_alpha={lora_alpha}, lora_dropout={lora_dropout}, target_modules={targets},
        use_rslora={use_rslora}, use_dora={use_dora}, task_type="CAUSAL_LM",
    ))


class RowsOfSteps(Sampler):
    """Every row once an epoch, in an order that the seed and the epoch alone decide."""

    def __init__(self, num_rows):
        self.num_rows = num_rows

    def __len__(self):
        return STEPS * ROWS_PER_STEP

    def __iter__(self):
        for at in range(len(self)):
            epoch, row = divmod(at, self.num_rows)
            if row == 0:
                raw = np.random.Philox(key=np.array([SEED, epoch], np.uint64)).random_raw(self.num_rows)
                order = np.argsort(raw, kind="stable")
            yield int(order[row])


class Trainer(SFTTrainer):
    def _get_train_sampler(self, dataset=None):
        return RowsOfSteps(len(self.train_dataset))


def collate(rows):
    """Packed documents are told apart by positions that start again at 0: they never attend to each other."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 64) * 64
    input_ids = torch.full((len(rows), width), PAD)
    labels = torch.full((len(rows), width), -100)
    position_ids = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        size = len(row["input_ids"])
        input_ids[i, :size] = torch.tensor(row["input_ids"])
        labels[i, :size] = torch.tensor(row["labels"])
        lengths = [*row["seq_lengths"], width - size]
        position_ids[i] = torch.cat([torch.arange(length) for length in lengths])
        labels[i, torch.tensor([0, *row["seq_lengths"][:-1]]).cumsum(0)] = -100
    return {{"input_ids": input_ids, "labels": labels, "position_ids": position_ids}}


tokenizer = AutoTokenizer.from_pretrained(*BASE[:1], **BASE[1])
PAD = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
model = add_adapter(load_base())
if (HERE / "start.safetensors").is_file():
    start = load_file(HERE / "start.safetensors")
    names = {{n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}}
    for name, value in start.items():
        names[name].data.copy_(value)
weights = {{n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}}
trainer = Trainer(
    model=model,
    args=SFTConfig(
        output_dir=str(HERE / "out"),
        max_steps=STEPS,
        per_device_train_batch_size={micro_batch},
        gradient_accumulation_steps={accumulation},
        learning_rate={learning_rate},
        lr_scheduler_type="{scheduler}",
        warmup_steps={warmup_steps},
        weight_decay={weight_decay},
        max_grad_norm={max_grad_norm},
        optim="{optim}",
        gradient_checkpointing={gradient_checkpointing},
        seed=SEED,
        data_seed=SEED,
        use_cpu=not ON_GPU,
        bf16=DTYPE is torch.bfloat16,
        fp16=DTYPE is torch.float16,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataset_kwargs={{"skip_prepare_dataset": True}},
        max_length=None,
    ),
    train_dataset=Dataset.from_file(str(HERE / "train.arrow")),
    data_collator=collate,
    processing_class=tokenizer,
)
for name, parameter in model.named_parameters():
    if parameter.requires_grad:  # trl makes the adapter of a quantized base bf16, which loses small updates
        parameter.data = weights[name].float()
trainer.train()
trainer.save_state()  # out/trainer_state.json has the loss of every step
model.save_pretrained(HERE / "adapter")
tokenizer.save_pretrained(HERE / "adapter")
'''


def _in_docstring(text: str) -> str:
    """Names that people chose, as text that ends no string and escapes nothing."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def trl_script(plan: Plan, steps: int, targets: str | list[str]) -> str:
    """`train.py`: the base, adapter, rows, order, optimizer and schedule of the plan, to run beside train.arrow.

    targets: the adapted layers as peft takes them.
    """
    where: dict[str, str] = {"revision": plan.base.sha} if plan.base.source == "hub" else {}
    base = f"({plan.base.id!r}, {where!r})"
    packages = "torch transformers peft trl bitsandbytes"
    if plan.base.source == "demo":
        base = "(str(__import__('qlora_space.core.demo').core.demo.BASE_FOLDER), {})"
        packages += "  # and qlora_space, which has the demo's base"
    return _SCRIPT.format(
        title=_in_docstring(
            f"{plan.name}: {plan.base.id} at {plan.bits} bits on {plan.dataset.id}."
        ),
        packages=packages,
        base=base,
        bits=plan.bits,
        seed=plan.seed,
        steps=steps,
        rows_per_step=rows_per_step(plan),
        attention=repr("eager" if plan.base.eager_attention else None),
        r=plan.r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        targets=repr(targets),
        use_rslora=plan.use_rslora,
        use_dora=plan.use_dora,
        micro_batch=plan.per_device_train_batch_size,
        accumulation=rows_per_step(plan) // plan.per_device_train_batch_size,
        learning_rate=plan.learning_rate,
        scheduler=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        optim=plan.optim,
        gradient_checkpointing=plan.gradient_checkpointing,
    )


def rows_per_step(plan: Plan) -> int:
    """Of all GPUs together."""
    per_device = plan.per_device_train_batch_size * plan.gradient_accumulation_steps
    return per_device * plan.num_processes
