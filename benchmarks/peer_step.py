"""One peer's training step on a base of random weights; a process of its own. Prints one JSON line for each shape.

    python benchmarks/peer_step.py trl|liger|unsloth FOLDER --rows 4x2048 1x2048 --recompute full|none

The step of benchmarks/step.py: random tokens, all trained, NF4 with double quantization, r 16 on all linears,
PagedAdamW8bit. trl: transformers, peft and bitsandbytes as trl sets them up; liger: the same with Liger's kernels;
unsloth: its loader, its adapter, its recomputation with offload ("full") or none.
"""

import argparse
import importlib
import json
import os
import statistics
import time
from typing import Any

import torch

_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_WARM_UP = 4
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
}  # fmt: skip


def main() -> None:
    options = _options()
    length = max(int(rows.split("x")[1]) for rows in options.rows)
    started = time.perf_counter()
    model = load_peer(options.peer, options.folder, length, options.recompute)
    loaded = time.perf_counter() - started
    for rows in options.rows:
        batch, length = map(int, rows.split("x"))
        line = {"peer": options.peer, "recompute": options.recompute, "rows": rows}
        try:
            line |= _measure(model, batch, length, options.steps) | {"load_s": round(loaded, 1)}
        except torch.OutOfMemoryError:
            line["oom"] = True
        print(json.dumps(line | {"gpu": torch.cuda.get_device_name()}), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["trl", "liger", "unsloth"])
    parser.add_argument("folder")
    parser.add_argument("--rows", nargs="+", default=["4x2048", "1x2048"])
    parser.add_argument("--recompute", choices=["full", "none"], default="full")
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def load_peer(peer: str, folder: str, length: int, recompute: str) -> Any:
    """A model ready to train. peer and recompute as the options of this script."""
    os.environ |= _OFFLINE
    load = _load_unsloth if peer == "unsloth" else _load_plain
    return load(peer, folder, length, recompute)


def _load_unsloth(_peer: str, folder: str, length: int, recompute: str) -> Any:
    language_model = importlib.import_module("unsloth").FastLanguageModel
    model, _ = language_model.from_pretrained(
        folder, max_seq_length=length, load_in_4bit=True, dtype=torch.bfloat16,
        use_exact_model_name=True, local_files_only=True,
    )  # fmt: skip
    model = language_model.get_peft_model(
        model, r=16, target_modules=_LINEARS, lora_alpha=16, lora_dropout=0, bias="none", random_state=0,
        max_seq_length=length, use_gradient_checkpointing="unsloth" if recompute == "full" else False,
    )  # fmt: skip
    language_model.for_training(model)
    return model


def _load_plain(peer: str, folder: str, _length: int, recompute: str) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    kind = AutoConfig.from_pretrained(folder).model_type
    if peer == "liger":
        liger = importlib.import_module("liger_kernel.transformers")
        getattr(liger, f"apply_liger_kernel_to_{kind}")()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": 0},
        attn_implementation="eager" if kind == "gemma2" else "sdpa",  # sdpa leaves its cap out
    )  # fmt: skip
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=recompute == "full",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=16, target_modules=_LINEARS, task_type="CAUSAL_LM")
    )
    model.train()
    return model


def _step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> torch.Tensor:
    on_gpu = ids.cuda(non_blocking=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(input_ids=on_gpu, labels=on_gpu).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _measure(model: Any, batch: int, length: int, steps: int) -> dict[str, float]:
    import bitsandbytes as bnb

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = bnb.optim.PagedAdamW8bit(parameters, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    size = (steps + _WARM_UP, batch, length)
    data = torch.randint(0, model.config.vocab_size, size, generator=generator)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for ids in data:
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = _step(model, optimizer, ids)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[_WARM_UP:])
    started = time.perf_counter()
    for ids in data[_WARM_UP:]:
        loss = _step(model, optimizer, ids)
    torch.cuda.synchronize()
    return {
        "tok_s": round(batch * length / median),
        "queued_tok_s": round(steps * batch * length / (time.perf_counter() - started)),
        "step_ms": round(median * 1e3, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "first_ms": round(seconds[0] * 1e3),
        "loss": round(float(loss), 4),
    }


if __name__ == "__main__":
    main()
