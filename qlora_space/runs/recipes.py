"""A run as a recipe for other programs: a script for trl, a YAML for Axolotl, one for LLaMA-Factory.

The first two train on the prepared tokens of the run, which go along: the same documents with the same loss masks.
LLaMA-Factory reads the dataset anew, by its columns.
"""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from qlora_space.core.errors import RunError
from qlora_space.core.export import RecipeFormat
from qlora_space.core.options import Format
from qlora_space.core.targets import ALL_LINEAR
from qlora_space.plan import Plan, num_steps
from qlora_space.runs.folder import RunFolder
from qlora_space.runs.trl_script import rows_per_step, trl_script

ROWS_FILE = "train.arrow"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SHAREGPT_TAGS = {
    "messages": ("role", "content", "user", "assistant"),
    "sharegpt": ("from", "value", "human", "gpt"),
}


def write_recipe(run: RunFolder, kind: RecipeFormat, folder: Path) -> None:
    """Write the files of a finished run into the empty `folder`. Raises RunError for one that others cannot repeat."""
    plan = run.plan()
    if not run.has_adapter:
        raise RunError("This run has no finished adapter.", "Wait until it is done.")
    _refuse_own_base(plan)
    makers = {"trl": _write_trl, "axolotl": _write_axolotl, "llama-factory": _write_llama_factory}
    makers[kind](run, plan, folder)


def _refuse_own_base(plan: Plan) -> None:
    if plan.is_low_bit or plan.base.quantization or plan.base.read_as or plan.base.num_experts:
        raise RunError(
            f"Other programs do not make this base ({plan.mean_width:g} bits of {plan.base.id}) in the same way.",
            "Publish the run: its record has every setting.",
        )


def _total_steps(run: RunFolder, plan: Plan) -> int:
    """Optimizer steps of the whole run, by the packed rows of its data."""
    file = run.data_folder / "manifest.json"
    if not file.is_file():
        raise RunError("The prepared data of this run is gone.", "Train again.")
    packed_rows = json.loads(file.read_bytes())["packed_rows"]
    return num_steps(plan.max_steps, plan.num_train_epochs, packed_rows, rows_per_step(plan))


def _targets(run: RunFolder) -> str | list[str]:
    """Names of the adapted layers, or a pattern, as peft took them."""
    config = json.loads((run.adapter_folder / "adapter_config.json").read_bytes())
    found = config["target_modules"]
    return found if isinstance(found, str) else sorted(found)


def _warmup_steps(plan: Plan, steps: int) -> int:
    """Below 1 the plan's number is a share of the steps, as in transformers 5; older versions know steps only."""
    share = plan.warmup_steps
    return math.ceil(share * steps) if 0 < share < 1 else round(share)


def _last_names(run: RunFolder) -> list[str]:
    """Of the adapted layers, as people write them. Raises RunError for a pattern."""
    found = _targets(run)
    if isinstance(found, str):
        raise RunError("The layers of this adapter are a pattern.", "Export it for trl.")
    return sorted({name.rpartition(".")[2] for name in found})


def _write_documents(run: RunFolder, file: Path) -> None:
    """The training rows as JSON lines of token ids, a document each."""
    with file.open("w") as out, pa.memory_map(str(run.data_folder / ROWS_FILE)) as source:
        for batch in pa.ipc.open_stream(source):
            for row in batch.to_pylist():
                start = 0
                for length in row["seq_lengths"]:
                    ids = row["input_ids"][start : start + length]
                    labels = row["labels"][start : start + length]
                    line = {"input_ids": ids, "attention_mask": [1] * length, "labels": labels}
                    out.write(json.dumps(line) + "\n")
                    start += length


def _write_trl(run: RunFolder, plan: Plan, folder: Path) -> None:
    script = trl_script(plan, _total_steps(run, plan), _targets(run))
    (folder / "train.py").write_text(script, encoding="utf-8")
    shutil.copyfile(run.data_folder / ROWS_FILE, folder / ROWS_FILE)
    if plan.adapter:
        start = run.start_folder / "adapter_model.safetensors"
        if not start.is_file():
            raise RunError("The adapter that this run went on from is gone.", "Export the model.")
        shutil.copyfile(start, folder / "start.safetensors")


def _refuse_start(plan: Plan) -> None:
    if plan.adapter:
        raise RunError(
            "This run went on from an adapter, which this recipe cannot say.", "Export it for trl."
        )


def _write_axolotl(run: RunFolder, plan: Plan, folder: Path) -> None:
    _refuse_start(plan)
    config: dict[str, Any] = {
        "base_model": _base_of(plan),
        **({"revision_of_model": plan.base.sha} if plan.base.source == "hub" else {}),
        "load_in_4bit": plan.bits == 4,
        "load_in_8bit": plan.bits == 8,
        "adapter": "qlora" if plan.bits == 4 else "lora",
        "lora_r": plan.r,
        "lora_alpha": plan.lora_alpha,
        "lora_dropout": plan.lora_dropout,
        "lora_target_modules": _last_names(run),
        "peft_use_rslora": plan.use_rslora,
        "peft_use_dora": plan.use_dora,
        "datasets": [{"path": "train.jsonl", "ds_type": "json", "type": None}],
        "sequence_len": plan.max_length,
        "sample_packing": plan.packing,
        "pad_to_sequence_len": False,
        "micro_batch_size": plan.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "max_steps": _total_steps(run, plan),
        "num_epochs": max(1, round(plan.num_train_epochs)),
        "optimizer": "adamw_torch_fused" if plan.optim == "adamw_torch" else plan.optim,
        "lr_scheduler": plan.lr_scheduler_type,
        "learning_rate": plan.learning_rate,
        "warmup_steps": _warmup_steps(plan, _total_steps(run, plan)),
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "bf16": "auto",
        "gradient_checkpointing": plan.gradient_checkpointing,
        "seed": plan.seed,
        "output_dir": "./out",
    }
    (folder / "axolotl.yaml").write_text(_yaml(config), encoding="utf-8")
    _write_documents(run, folder / "train.jsonl")


def _write_llama_factory(run: RunFolder, plan: Plan, folder: Path) -> None:
    _refuse_start(plan)
    is_all = plan.target_modules == ALL_LINEAR
    targets = "all" if is_all else ",".join(_last_names(run))
    config: dict[str, Any] = {
        "model_name_or_path": _base_of(plan),
        **({"model_revision": plan.base.sha} if plan.base.source == "hub" else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        **({"quantization_bit": plan.bits, "quantization_method": "bnb"} if plan.bits < 16 else {}),
        **({"double_quantization": True, "quantization_type": "nf4"} if plan.bits == 4 else {}),
        "lora_rank": plan.r,
        "lora_alpha": plan.lora_alpha,
        "lora_dropout": plan.lora_dropout,
        "lora_target": targets,
        "use_rslora": plan.use_rslora,
        "use_dora": plan.use_dora,
        "dataset_dir": ".",
        "dataset": "run",
        "cutoff_len": plan.max_length,
        "packing": plan.packing,
        "neat_packing": plan.packing,
        "train_on_prompt": not plan.assistant_only_loss,
        "per_device_train_batch_size": plan.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "max_steps": _total_steps(run, plan),
        "optim": plan.optim,
        "lr_scheduler_type": plan.lr_scheduler_type,
        "learning_rate": plan.learning_rate,
        "warmup_steps": _warmup_steps(plan, _total_steps(run, plan)),
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "bf16": True,
        "disable_gradient_checkpointing": not plan.gradient_checkpointing,
        "seed": plan.seed,
        "output_dir": "./out",
    }
    info = json.dumps({"run": _dataset_info(plan)}, indent=1)
    (folder / "llama_factory.yaml").write_text(_yaml(config), encoding="utf-8")
    (folder / "dataset_info.json").write_text(info, encoding="utf-8")


def _dataset_info(plan: Plan) -> dict[str, Any]:
    """How LLaMA-Factory reads the dataset. Raises RunError for one that it has no words for."""
    if not _HUB_ID.fullmatch(plan.dataset.id) or plan.instruction:
        raise RunError(
            f"LLaMA-Factory cannot read {plan.dataset.id} as this run did.",
            "Export it for trl or Axolotl, which get the prepared tokens.",
        )
    source: dict[str, Any] = {"hf_hub_url": plan.dataset.id}
    columns = plan.columns
    match Format(plan.dataset.format):
        case Format.MESSAGES | Format.SHAREGPT as format:
            role, content, user, assistant = _SHAREGPT_TAGS[format.value]
            tags = {
                "role_tag": role,
                "content_tag": content,
                "user_tag": user,
                "assistant_tag": assistant,
            }
            turns = next(iter(columns.values()), "messages")
            return source | {"formatting": "sharegpt", "columns": {"messages": turns}, "tags": tags}
        case Format.ALPACA | Format.PROMPT_COMPLETION:
            names = {
                "prompt": columns.get("instruction") or columns.get("prompt", "prompt"),
                "response": columns.get("output") or columns.get("completion", "completion"),
            }
            if given := columns.get("input"):
                names["query"] = given
            return source | {"columns": names}
    raise RunError(
        f"LLaMA-Factory's supervised stage has no format like {plan.dataset.format}.",
        "Export it for trl or Axolotl, which get the prepared tokens.",
    )


def _base_of(plan: Plan) -> str:
    if plan.base.source == "demo":
        raise RunError("The demo's base is in this package alone.", "Export it for trl.")
    return plan.base.id


def _yaml(config: dict[str, Any]) -> str:
    """Values as JSON, which YAML contains."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
