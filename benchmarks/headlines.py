"""What fits on which card: real optimizer steps under a hard cap on torch's memory, one process a headline.

    python benchmarks/headlines.py                     all of HEADLINES, JSON lines and a Markdown table
    python benchmarks/headlines.py 14b-12 8b-context-24

A cap of N GB is N * 10^9 bytes for all that torch holds (torch.cuda.set_per_process_memory_fraction); a card of N GiB
has at least 7 % more, where the CUDA context lies. Weights are random and really quantized to NF4 with double
quantization, layer by layer on the GPU, so that no checkpoint is written. Every token is trained. The optimizer's 8-bit
states are not paged: they count.

A longest context is found with two layers of the whole model in memory (every layer takes the same room), from three
short trials and a straight line, and then confirmed with one whole micro-step and an optimizer step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_GIB = 2**30
_STEPS = 20


@dataclass(frozen=True)
class Headline:
    """cap_gb: 10^9 bytes; tokens: of one row, 0 to find the most, up to most_tokens (0: no limit).

    is_tuned: the policy is the tuner's, and all others are timed after it; is_whole: else two layers are all that runs.
    is_on_host: the packed weights lie in host memory.
    """

    name: str
    shape: str
    cap_gb: float
    tokens: int
    r: int = 16
    optim: str = "adamw_8bit"
    most_tokens: int = 0
    is_tuned: bool = False
    is_whole: bool = True
    is_on_host: bool = False


_LLAMA = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rope_theta": 500000.0}
_QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # config.json of the models of that name
    "llama-65b": ("llama", {"vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 22016,
                            "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 64}),
    "llama-3-70b": ("llama", _LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                                       "num_attention_heads": 64}),
    "llama-3.1-8b": ("llama", _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                                        "num_attention_heads": 32}),
    "qwen3-8b": ("qwen3", _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                                    "num_attention_heads": 32}),
    "qwen3-14b": ("qwen3", _QWEN3 | {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
                                     "num_attention_heads": 40}),
    "tiny": ("llama", {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
                       "num_attention_heads": 4, "num_key_value_heads": 2}),
}  # fmt: skip
HEADLINES = [
    Headline("8b-6", "qwen3-8b", 6.0 * _GIB / 1e9, 2048),
    Headline("65b-48", "llama-65b", 48, 512, optim="adamw_torch"),
    Headline("70b-42", "llama-3-70b", 42, 512),
    Headline("70b-40", "llama-3-70b", 40, 512, r=8),
    Headline("70b-host-24", "llama-3-70b", 24, 2048, is_on_host=True),
    Headline("70b-host-16", "llama-3-70b", 16, 2048, is_on_host=True),
    Headline("70b-host-12", "llama-3-70b", 12, 512, is_on_host=True),
    Headline("14b-12", "qwen3-14b", 12, 2048),
    Headline("8b-context-12", "llama-3.1-8b", 12, 0),
    Headline("8b-context-16", "llama-3.1-8b", 16, 0),
    Headline("8b-context-24", "llama-3.1-8b", 24, 0),
    Headline("8b-tuned-12", "qwen3-8b", 12, 8192, optim="adamw_torch", is_tuned=True),
    Headline("8b-tuned-24", "qwen3-8b", 24, 8192, optim="adamw_torch", is_tuned=True),
    Headline("8b-context-80", "llama-3.1-8b", 80, 0, most_tokens=21 * 2**14, is_whole=False),
    Headline("8b-context-80-whole", "llama-3.1-8b", 80, 0, most_tokens=21 * 2**14),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    names = [h.name for h in HEADLINES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help="another shape: to try the script itself")
    options = parser.parse_args()
    chosen = [h for h in HEADLINES if h.name in (options.names or names)]
    if options.child:
        shape = options.shape or chosen[0].shape
        print(json.dumps(asdict(chosen[0]) | {"shape": shape} | measure(chosen[0], shape)))
        return
    lines = [line for h in chosen if (line := _in_own_process(h.name, options.shape))]
    print("\n" + "\n".join(_table(lines)))


def _in_own_process(name: str, shape: str | None) -> dict[str, Any] | None:
    command = [sys.executable, __file__, "--child", name, *(["--shape", shape] if shape else [])]
    # One growing piece of address space: memory that is free is not lost between pieces of other sizes.
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        print(json.dumps({"name": name, "failed": done.returncode}), flush=True)
        return None
    line = done.stdout.splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def _table(lines: list[dict[str, Any]]) -> Iterator[str]:
    yield "| headline | cap GB | tokens | r | policy | steps | peak GiB | reserved GiB | s a step | tok/s |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    row = (
        "| {name}, {shape} | {cap_gb:.3g} | {tokens:,} | {r} | {policy} | {steps} | {peak_gib} | {reserved_gib} "
        "| {seconds} | {tok_s:,} |"
    )
    yield from (row.format_map(line) for line in lines)


def measure(headline: Headline, shape: str) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _cap(headline.cap_gb)
    started = time.perf_counter()
    model = adapted(shape, headline.r, device, on_host=headline.is_on_host)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activation_policies.json"
        step, text = _attached(model, file, is_tuned=headline.is_tuned)
        ready = time.perf_counter() - started
        print(f"{headline.name}: {text} Ready after {ready:.1f} s.", file=sys.stderr, flush=True)
        result = {"ready_s": round(ready, 1), "said": text, "at_start_gib": _peak_gib()}
        optimizer = _optimizer(model, headline.optim)
        if not headline.tokens:
            return result | _context(headline, step, optimizer)
        tokens = headline.tokens if device == "cuda" else 256
        result |= {"tokens": tokens} | _steps(step, optimizer, tokens, _STEPS)
        if headline.is_tuned and file.exists():
            result["remembered"] = json.loads(file.read_text())
    if headline.is_tuned:
        result["by_policy"] = _by_policy(step, optimizer, tokens)
    return result


def _context(headline: Headline, step: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    _steps(step, optimizer, 128, 1)  # from here on the optimizer's states are there
    fast, layers = step.fast, step.fast.layers
    fast.layers = layers[:2]
    guess, longest, trials = _longest(step, headline.cap_gb, headline.most_tokens)
    if headline.is_whole:
        fast.layers = layers
    found = {"guess": guess, "trials": trials, "tokens": longest, "layers": len(fast.layers)}
    return found | _steps(step, optimizer, longest, 1)


def _by_policy(step: Any, optimizer: torch.optim.Optimizer, tokens: int) -> dict[str, Any]:
    """Tokens a second and reserved GiB of each policy under the same cap, or that it does not fit."""
    from qlora_space.fast import ActivationPolicy

    results: dict[str, Any] = {}
    for policy in ActivationPolicy:
        step.release()
        step.use_policy(policy)
        try:
            line = _steps(step, optimizer, tokens, 6)
            results[policy.name] = [line["tok_s"], line["reserved_gib"]]
        except torch.OutOfMemoryError:
            results[policy.name] = "does not fit"
            step.fast.is_in_backward = False
    return results


def _cap(cap_gb: float) -> None:
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * 1e9 / total))


def adapted(shape: str, r: int, device: str, *, on_host: bool = False) -> Any:
    """A peft model over a random NF4 base: weights frozen, adapters fp32 with a B that is not zero."""
    from peft import LoraConfig, get_peft_model

    from qlora_space.fast.warming import random_base

    base = random_base(_config(shape), device, on_host=on_host)
    torch.manual_seed(0)
    lora = LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.01)
    return model


def _config(shape: str) -> Any:
    from transformers.models.auto import CONFIG_MAPPING

    kind, sizes = SHAPES[shape]
    return CONFIG_MAPPING[kind](**sizes, max_position_embeddings=2**20, tie_word_embeddings=False)


def _attached(model: Any, file: Path, *, is_tuned: bool) -> tuple[Any, str]:
    from qlora_space.fast import ActivationPolicy, attach

    step, text = attach(model, file, on_cpu=True)
    if step is None:
        raise SystemExit(text)
    if not is_tuned:
        step.use_policy(ActivationPolicy.OFFLOAD)
    return step, text


def _optimizer(model: Any, name: str) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw_torch" or not torch.cuda.is_available():
        return torch.optim.AdamW(parameters, lr=1e-4, fused=torch.cuda.is_available())
    import bitsandbytes as bnb

    return bnb.optim.AdamW8bit(parameters, lr=1e-4)


def _micro_step(step: Any, tokens: int, seed: int) -> torch.Tensor:
    vocabulary = step.fast.head.weight.shape[0]
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(seed % 2))
    inputs = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(tokens)[None]}
    return step(inputs, tokens - 1)


def _steps(step: Any, optimizer: torch.optim.Optimizer, tokens: int, count: int) -> dict[str, Any]:
    """The same two rows in turn, so that the loss falls if the step is right."""
    _reset_peak()
    seconds, losses = [], []
    for i in range(count):
        started = time.perf_counter()
        losses.append(_micro_step(step, tokens, i))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait()
        seconds.append(time.perf_counter() - started)
    values = [round(loss.item(), 3) for loss in losses]
    typical = statistics.median(seconds[len(seconds) // 2 :])
    return {
        "policy": step.fast.policy.name, "steps": count, "first_loss": values[0], "last_loss": values[-1],
        "peak_gib": _peak_gib(), "reserved_gib": _reserved_gib(), "seconds": round(typical, 2),
        "first_seconds": round(seconds[0], 2), "tok_s": round(tokens / typical),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }  # fmt: skip


def _longest(
    step: Any, cap_gb: float, most_tokens: int
) -> tuple[int, int, list[tuple[int, float]]]:
    """(what a straight line says, the longest row that ran, trials: tokens and GiB, 0 for too much)."""
    if not torch.cuda.is_available():
        return 128, 128, []
    trials = [_trial(step, 2**14), _trial(step, 2**16)]
    if not trials[-1][1]:
        trials.append(_trial(step, 2**15))
    (t0, m0), (t1, m1) = trials[0], trials[-1]
    most = t1 + (cap_gb * 1e9 / _GIB - m1) * (t1 - t0) / (m1 - m0)
    unit = 2**13 if most < 2**18 else 2**14  # what batch.py would round up to
    guess = longest = int(most / unit) * unit
    if most_tokens and most_tokens < guess:
        return guess, most_tokens, trials
    while True:
        trials.append(_trial(step, longest))
        if trials[-1][1]:
            return guess, longest, trials
        longest -= unit


def _trial(step: Any, tokens: int) -> tuple[int, float]:
    try:
        _reset_peak()
        if not math.isfinite(_micro_step(step, tokens, 0).item()):
            raise SystemExit(f"the loss of {tokens} tokens is not a number")
        return tokens, _reserved_gib()
    except torch.OutOfMemoryError:
        step.fast.is_in_backward = False
        return tokens, 0.0
    finally:
        torch.cuda.empty_cache()


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _now_gib() -> float:
    return round(torch.cuda.memory_allocated() / _GIB, 2) if torch.cuda.is_available() else 0.0


def _peak_gib() -> float:
    return round(torch.cuda.max_memory_allocated() / _GIB, 2) if torch.cuda.is_available() else 0.0


def _reserved_gib() -> float:
    return round(torch.cuda.max_memory_reserved() / _GIB, 2) if torch.cuda.is_available() else 0.0


if __name__ == "__main__":
    main()
