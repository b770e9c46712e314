"""The training step alone, at each policy: tokens/s, peak memory, share of the floor.

    python benchmarks/step.py /dev/shm/qwen3-8b --rows 4x2048 1x2048 --policies OFFLOAD LAYER ALL

Random tokens, all trained, NF4 with double quantization, r 16 on all linears, median of the steps. Optimizer: torch's
fused AdamW with fp32 states (fast), PagedAdamW8bit (PLAIN). Peak: everything after loading, first steps and optimizer
states included. One JSON line each, then a Markdown table. The floor counts products of matrices and attention at
790 TFLOP/s. queued_tok_s: over as many steps again, none of which is waited for, as in a run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model

from qlora_space.fast import ActivationPolicy, attach, make_batch
from qlora_space.fast.model import fast_gradients, plain_gradients, relative
from qlora_space.model import load_base
from qlora_space.model.by_blocks import load_on_host

_TFLOPS = 790e12
_WARM_UP = 3


def main() -> None:
    options = _options()
    started = time.monotonic()
    base = (
        load_on_host(options.base, "cuda")
        if options.on_host
        else load_base(options.base, 4, "cuda")
    )
    torch.manual_seed(0)
    model = get_peft_model(
        base, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    loaded = time.monotonic() - started
    lines = []
    for rows in options.rows if "PLAIN" in options.policies else []:
        lines.append(_try(model, None, "PLAIN", rows, options.steps))
    started = time.monotonic()
    step, text = attach(model)
    print(text, f"load {loaded:.1f} s, attach {time.monotonic() - started:.1f} s", flush=True)
    assert step is not None
    for rows in options.rows:
        for policy in options.policies:
            if policy == "PLAIN":
                continue
            lines.append(_try(model, step, policy, rows, options.steps))
            if f"{policy}:{rows}" in options.profile:
                _profile(model, step, rows)
    if options.fp8:
        lines += _in_fp8(model, step, options)
    print("| rows | policy | tok/s | of the floor | peak GiB |\n|---|---|---|---|---|")
    for line in lines:
        if "tok_s" in line:
            print("| {rows} | {policy} | {tok_s} | {of_floor} | {peak_gib} |".format_map(line))
    if options.check:
        _check(model, step)


def _in_fp8(model, step, options: argparse.Namespace) -> list[dict]:
    """Whatever its gate says: random weights in many layers make much of small differences."""
    ids = torch.randint(0, model.config.vocab_size, (1, 512))
    inputs = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(512)[None]}
    print(step.use_fp8(inputs), flush=True)
    step.switch_fp8(is_used=True)
    lines = []
    for rows in options.rows:
        for policy in options.policies:
            if policy != "PLAIN":
                lines.append(_try(model, step, policy, rows, options.steps))
                lines[-1]["policy"] = f"{policy}, FP8"
            if f"{policy}-FP8:{rows}" in options.profile:
                _profile(model, step, rows)
    return lines


def _try(model, step, policy: str, rows: str, steps: int) -> dict:
    batch, length = map(int, rows.split("x"))
    try:
        line = _measure(model, step, policy, batch, length, steps)
    except torch.cuda.OutOfMemoryError:
        line = {"policy": policy, "rows": rows, "oom": True}
    print(json.dumps(line | {"gpu": torch.cuda.get_device_name()}), flush=True)
    return line


def _check(model, step) -> None:
    """Errors of both ways against the plain way with fp32 activations, same bf16 weights. Ruins the model."""
    ids = torch.randint(1000, (1, 512))
    positions = torch.arange(512)[None]
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn_like(p) * 0.02)
    fast = step.fast
    mine = fast_gradients(fast, make_batch(ids, ids, positions))[1]
    parameters = fast.parameters
    plain = plain_gradients(model, ids, ids, positions, parameters)[1]
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype = torch.float32
        else:
            for p in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                p.data = p.data.float() if p.dtype == torch.bfloat16 else p.data
    exact = plain_gradients(model, ids, ids, positions, parameters)[1]
    print(
        f"gradient error against fp32: plain {relative(plain, exact):.4f}, fast {relative(mine, exact):.4f}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("--rows", nargs="+", default=["4x2048", "1x2048"])
    parser.add_argument("--policies", nargs="+", default=["PLAIN", *ActivationPolicy.__members__])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", nargs="*", default=[], help="such as ALL:4x2048")
    parser.add_argument("--on-host", action="store_true", help="packed weights in host memory")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--fp8", action="store_true", help="multiply the base in FP8, once more")
    return parser.parse_args()


def _step(model, step, ids, positions, optimizer):
    if step is None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids.cuda(), labels=ids.cuda(), use_cache=False).loss
        loss.backward()
    else:
        inputs = {"input_ids": ids, "labels": ids, "position_ids": positions}
        loss = step(inputs, ids.shape[0] * (ids.shape[1] - 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def _optimizer(model, step):
    parameters = [p for p in model.parameters() if p.requires_grad]
    if step is None:
        return bnb.optim.PagedAdamW8bit(parameters, lr=1e-4)
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)


def _measure(model, step, policy: str, rows: int, length: int, steps: int) -> dict:
    if step is None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    else:
        step.release()
        step.use_policy(ActivationPolicy[policy])
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, vocabulary, (steps + _WARM_UP, rows, length), generator=generator)
    positions = torch.arange(length).expand(rows, -1)
    model.zero_grad()
    optimizer = _optimizer(model, step)
    model.train()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds, launch = [], []
    for ids in data:
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = _step(model, step, ids, positions, optimizer)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        launch.append(launched - started)
    median = statistics.median(seconds[_WARM_UP:])
    started = time.perf_counter()
    for ids in data[_WARM_UP:]:
        loss = _step(model, step, ids, positions, optimizer)
    torch.cuda.synchronize()
    queued = steps * rows * length / (time.perf_counter() - started)
    return {
        "policy": policy, "rows": f"{rows}x{length}", "tok_s": round(rows * length / median),
        "queued_tok_s": round(queued),
        "of_floor": round(_floor(model, length, policy) * rows * length / median, 3),
        "step_ms": round(median * 1e3, 1), "launch_ms": round(statistics.median(launch[_WARM_UP:]) * 1e3, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        "first_ms": round(seconds[0] * 1e3), "loss": round(loss.item(), 4),
    }  # fmt: skip


def _floor(model, length: int, policy: str) -> float:
    """Seconds per token: linears and head forward and dx, attention 1 + 2.5 times, what the policy repeats."""
    c = model.config
    heads = c.num_attention_heads * c.head_dim
    qkv = c.hidden_size * (heads + 2 * c.num_key_value_heads * c.head_dim)
    o, gate_up, down = (
        heads * c.hidden_size,
        2 * c.hidden_size * c.intermediate_size,
        c.intermediate_size * c.hidden_size,
    )
    attention = 2 * length * heads
    kept = {
        "ALL": 0,
        "QKV": gate_up,
        "ATTENTION": gate_up + qkv,
        "OFFLOAD_ATTENTION": gate_up + qkv,
        "OFFLOAD_QKV": gate_up + qkv / 2,
        "WEIGHTS": 0,
    }
    again = kept.get(policy, gate_up + qkv + o)
    layer = 4 * (qkv + o + gate_up + down) + 2 * again + attention * 3.5
    layer += attention if policy not in kept else 0
    return (c.num_hidden_layers * layer + 4 * c.vocab_size * c.hidden_size) / _TFLOPS


def _profile(model, step, rows: str) -> None:
    batch, length = map(int, rows.split("x"))
    optimizer = _optimizer(model, step)
    ids = torch.randint(0, model.config.vocab_size, (batch, length))
    positions = torch.arange(length).expand(batch, -1)
    for _ in range(2):
        _step(model, step, ids, positions, optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        _step(model, step, ids, positions, optimizer)
        torch.cuda.synchronize()
    print(f"profile of {rows} at {step.fast.policy.name}")
    print(
        profile.key_averages().table(
            sort_by="cuda_time_total", row_limit=40, max_name_column_width=110
        )
    )


if __name__ == "__main__":
    main()
