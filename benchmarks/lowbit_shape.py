"""Low bits on a real shape with random weights: the training step under a memory cap, and the time to quantize.

    python benchmarks/lowbit_shape.py train qwen3-14b --bits 2 --cap-gib 24 --path fast
    python benchmarks/lowbit_shape.py train qwen3-14b --bits 4 --cap-gib 24 --path fast     (NF4 on the same path)
    python benchmarks/lowbit_shape.py quantize qwen3-14b --init eora --folder /dev/shm/base
    python benchmarks/lowbit_shape.py quantize qwen3-14b --init none --folder /dev/shm/base  (no calibration)

train: r 16 on all linears. fast: qlora_space/fast with its own tuner; plain: checkpointing, loss in tiles of 512
tokens. The cap holds for everything of the process, the CUDA context included.
quantize: the weights of --distinct-layers layers are written to --folder and read again for every layer of the model,
as what they say does not matter to the time. One JSON line each.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from random_base import QWEN3, SHAPES, write_base
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Qwen3Config

from qlora_space.fast import ActivationPolicy, attach
from qlora_space.lowbit import build
from qlora_space.lowbit.build import Recipe, pack_base, quantize_base
from qlora_space.lowbit.grid import grid_of
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.windows import Windows

_TILE_TOKENS, _GIB = 512, 2**30
_WARM_UP = 9  # the tuner's trials
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Step = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    options = parsed()
    context_gib = memory_taken_gib()
    if options.cap_gib:
        whole = torch.cuda.get_device_properties(0).total_memory
        allowed = (options.cap_gib - context_gib) * _GIB
        torch.cuda.set_per_process_memory_fraction(allowed / whole)
    line = {"what": options.what, "shape": options.shape, "bits": options.bits}
    try:
        line |= train(options) if options.what == "train" else quantized(options)
    except torch.OutOfMemoryError as error:
        line |= {"path": options.path, "out_of_memory": str(error)[:120]}
    line |= {"context_gib": round(context_gib, 2), "cap_gib": options.cap_gib}
    print(json.dumps(line | {"device": device_name()}), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "quantize"))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--init", default="eora")
    parser.add_argument("--calibrated", action="store_true")
    parser.add_argument("--cap-gib", type=float, default=0)
    parser.add_argument("--path", choices=("fast", "plain"), default="fast")
    parser.add_argument("--optim", choices=("adamw", "paged_adamw_8bit"), default="adamw")
    parser.add_argument(
        "--first-policy", choices=list(ActivationPolicy.__members__), default="LAYER"
    )
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/base"))
    parser.add_argument("--distinct-layers", type=int, default=2)
    return parser.parse_args()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def memory_taken_gib() -> float:
    """Of this GPU before anything is allocated: the context, and what lies there anyway."""
    if _DEVICE == "cpu":
        return 0.0
    torch.cuda.init()
    torch.empty(1, device=_DEVICE)
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / _GIB


def train(options: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    model = random_model(options.shape, options.bits)
    weights_gib = memory_gib()
    rank = options.rank
    model = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    step, optimizer, note = (fast_step if options.path == "fast" else plain_step)(model, options)
    seconds, vocabulary = [], model.config.vocab_size
    for _ in range(_WARM_UP + options.steps):
        ids = torch.randint(vocabulary, (options.rows, options.tokens))
        synchronize()
        begun = time.monotonic()
        step(ids)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        seconds.append(time.monotonic() - begun)
    median = statistics.median(seconds[_WARM_UP:])
    return {
        "path": options.path,
        "optim": options.optim,
        "rows": options.rows,
        "tokens": options.tokens,
        "tokens_per_second": round(options.rows * options.tokens / median),
        "weights_gib": round(weights_gib, 2),
        "peak_gib": round(peak_gib(), 2),
        "note": note(),
    }


def fast_step(model, options) -> tuple[Step, torch.optim.Optimizer, Callable[[], str]]:
    """As a run takes it: qlora_space/fast, which finds out what it may keep."""
    step, text = attach(model, on_cpu=_DEVICE == "cpu")
    if step is None:
        raise SystemExit(text)
    step.fast.policy = ActivationPolicy[options.first_policy]
    model.train()

    def run(ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
        inputs = {"input_ids": ids, "labels": ids, "position_ids": positions}
        return step(inputs, ids.shape[0] * (ids.shape[1] - 1))

    return run, optimizer_of(model, options.optim), lambda: f"keeps: {step.fast.policy.name}"


def plain_step(model, options) -> tuple[Step, torch.optim.Optimizer, Callable[[], str]]:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    base = model.get_base_model()

    def run(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(_DEVICE, torch.bfloat16):
            loss = tiled_loss(base, ids.to(_DEVICE))
        loss.backward()
        return loss

    return run, optimizer_of(model, options.optim), lambda: "checkpointing"


def optimizer_of(model, name: str) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    return bnb.optim.PagedAdamW8bit(parameters, lr=1e-4)


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
    config = Qwen3Config(**QWEN3 | SHAPES[shape], dtype="bfloat16")
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


def random_linear(linear: nn.Module, bits: int) -> nn.Module:
    n, m = linear.in_features, linear.out_features
    if bits == 4:
        weight = torch.randn(m, n, dtype=torch.bfloat16, device=_DEVICE) * 0.02
        made = bnb.nn.Linear4bit(
            n, m, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4",
            device="meta",
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


class RepeatedShards(Shards):
    """The weights of a few layers, read as those of every layer."""

    def read(self, key: str, device: str) -> torch.Tensor:
        if key not in self._files:
            parts = key.split(".")
            kept = len({k.split(".")[2] for k in self._files if ".layers." in k})
            key = ".".join((*parts[:2], str(int(parts[2]) % kept), *parts[3:]))
        return super().read(key, device)


def quantized(options: argparse.Namespace) -> dict:
    """Reading, calibrating on `windows` x `tokens`, quantizing, solving; nothing is written."""
    if not (options.folder / "config.json").is_file():
        write_base(options.shape, options.folder, options.distinct_layers)
        gc.collect()
    build.Shards = RepeatedShards
    if _DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.monotonic()
    if options.init == "none":
        pack_base(options.folder, options.bits, 64, _DEVICE, torch.bfloat16)
        synchronize()
        return {
            "init": "none",
            "seconds": round(time.monotonic() - begun, 1),
            "peak_gib": round(peak_gib(), 2),
        }
    ids = torch.randint(0, 2000, (options.windows + 2, options.tokens))
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), options.windows)
    recipe = Recipe(options.bits, 64, options.init, options.rank, options.calibrated)

    def say(done: int, total: int) -> None:
        if done and done % 10 == 0:
            print(f"{done} of {total} layers in {time.monotonic() - begun:.1f} s", flush=True)

    made = quantize_base(
        options.folder, recipe, windows, device=_DEVICE, dtype=torch.bfloat16, progress=say
    )
    synchronize()
    errors = list(made.errors.values())
    return {
        "init": options.init,
        "calibrated": options.calibrated,
        "r": options.rank,
        "seconds": round(time.monotonic() - begun, 1),
        "calibration_tokens": options.windows * options.tokens,
        "peak_gib": round(peak_gib(), 2),
        "mean_error": [
            round(statistics.mean(e.quantized for e in errors), 4),
            round(statistics.mean(e.repaired for e in errors), 4),
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
