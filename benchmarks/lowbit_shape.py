"""Low bits on a real shape with random weights: the training step under a memory cap, and the time to quantize.

    python benchmarks/lowbit_shape.py train qwen3-14b --bits 2 --cap-gib 24
    python benchmarks/lowbit_shape.py train qwen3-14b --bits 4 --cap-gib 24          (NF4, the same plain path)
    python benchmarks/lowbit_shape.py quantize /dev/shm/qwen3-8b --init eora         (a folder of random_base.py)

train: r 16 on all linears, checkpointing, PagedAdamW8bit, loss in tiles of 512 tokens. One JSON line each.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from random_base import _QWEN3, SHAPES
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Qwen3Config

from qlora_space.lowbit.build import Recipe, quantize_base
from qlora_space.lowbit.grid import grid_of
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.stream import Windows

_TILE_TOKENS, _WARM_UP, _GIB = 512, 2, 2**30
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "quantize"))
    parser.add_argument("shape")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--init", default="eora")
    parser.add_argument("--cap-gib", type=float, default=0)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--windows", type=int, default=64)
    options = parser.parse_args()
    if options.cap_gib:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.cap_gib * _GIB / whole)
    line = {"what": options.what, "shape": Path(options.shape).name, "bits": options.bits}
    try:
        line |= (train if options.what == "train" else quantized)(options)
    except torch.OutOfMemoryError as error:
        line |= {"out_of_memory": str(error)[:200]}
    print(json.dumps(line | {"cap_gib": options.cap_gib, "device": device_name()}), flush=True)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def train(options: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    model = random_model(options.shape, options.bits)
    weights_gib = memory_gib()
    rank = options.rank
    model = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (bnb.optim.PagedAdamW8bit if _DEVICE == "cuda" else torch.optim.AdamW)(
        parameters, lr=1e-4
    )
    base, seconds = model.get_base_model(), []
    for _ in range(_WARM_UP + options.steps):
        ids = torch.randint(base.config.vocab_size, (options.rows, options.tokens), device=_DEVICE)
        synchronize()
        begun = time.monotonic()
        with torch.autocast(_DEVICE, torch.bfloat16):
            loss = tiled_loss(base, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        seconds.append(time.monotonic() - begun)
    step = statistics.median(seconds[_WARM_UP:])
    return {
        "rows": options.rows,
        "tokens": options.tokens,
        "tokens_per_second": round(options.rows * options.tokens / step),
        "weights_gib": round(weights_gib, 2),
        "peak_gib": round(peak_gib(), 2),
    }


def tiled_loss(base: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    hidden, targets = hidden.flatten(0, 1), ids[:, 1:].flatten()
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(hidden.split(_TILE_TOKENS), targets.split(_TILE_TOKENS), strict=True):
        total = total + checkpoint(
            _tile, base.get_output_embeddings(), part, wanted, use_reentrant=False
        )
    return total / len(targets)


def _tile(head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(states).float(), targets, reduction="sum")


def random_model(shape: str, bits: int) -> nn.Module:
    """Embeddings and head in bf16, linears packed; 4 bits are NF4 with double quantization."""
    config = Qwen3Config(**_QWEN3, **SHAPES[shape], dtype="bfloat16")
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(name, random_linear(module, bits))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if p.is_meta:
                value = torch.randn(p.shape, dtype=torch.bfloat16, device=_DEVICE) * 0.02
                value = torch.ones_like(value) if p.dim() == 1 else value
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.to(_DEVICE)


def random_linear(linear: nn.Linear, bits: int) -> nn.Module:
    n, m = linear.in_features, linear.out_features
    if bits == 4:
        weight = torch.randn(m, n, dtype=torch.bfloat16, device=_DEVICE) * 0.02
        made = bnb.nn.Linear4bit(
            n, m, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4"
        )  # fmt: skip
        made.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
        )
        return made.to(_DEVICE)
    made = LowBitLinear(n, m, grid_of(bits, 64), device=_DEVICE)
    for buffer in (made.codes, made.zeros):
        buffer.random_(0, 256)
    made.scales.uniform_(0.01, 0.02)
    return made


def quantized(options: argparse.Namespace) -> dict:
    """Reading, calibrating on `windows` x `tokens`, quantizing, solving; nothing is written."""
    ids = torch.randint(0, 2000, (options.windows + 2, options.tokens))
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), options.windows)
    recipe = Recipe(options.bits, 64, options.init, options.rank)
    begun = time.monotonic()
    made = quantize_base(Path(options.shape), recipe, windows, device=_DEVICE, dtype=torch.bfloat16)
    synchronize()
    errors = list(made.errors.values())
    return {
        "init": options.init,
        "seconds": round(time.monotonic() - begun, 1),
        "calibration_tokens": options.windows * options.tokens,
        "peak_gib": round(peak_gib(), 2),
        "mean_error": [
            round(statistics.mean(e.quantized for e in errors), 4),
            round(statistics.mean(e.started for e in errors), 4),
        ],
    }


def synchronize() -> None:
    if _DEVICE == "cuda":
        torch.cuda.synchronize()


def memory_gib() -> float:
    return torch.cuda.memory_allocated() / _GIB if _DEVICE == "cuda" else 0.0


def peak_gib() -> float:
    return torch.cuda.max_memory_reserved() / _GIB if _DEVICE == "cuda" else 0.0


if __name__ == "__main__":
    main()
