"""Steps of a mixture of experts of a real shape, and of transformers + peft + bitsandbytes beside them, in one run.

    python benchmarks/experts.py OUT --shape qwen3-30b-a3b --layers 24 --rows 4x2048 1x2048 --policies LAYER OFFLOAD
    python benchmarks/experts.py OUT --peer --rows 4x2048                      transformers + peft + bitsandbytes
    python benchmarks/experts.py OUT --plain --rows 4x2048                     our packed experts under autograd

Random weights, made on the GPU layer by layer: never is more than one layer there in 16 bits. NF4 with double
quantization; rank 16 on attention, --expert-r on every expert; PagedAdamW8bit; random tokens, all trained. Peak: all
that was allocated from the first step on. Lines of JSON go to OUT/experts.jsonl too, kernels' times to OUT/profile-*.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_space.experts import (
    expert_targets,
    linear_targets,
    packed_experts,
    products,
    visible_experts,
)
from qlora_space.experts.module import make_packable, routers
from qlora_space.fast import ActivationPolicy, attach, nf4_linear

SHAPES: dict[str, dict[str, Any]] = {
    # config.json of the models of that name
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "tie_word_embeddings": False,
        "max_position_embeddings": 40960,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "tie_word_embeddings": False,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "qwen3_moe", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512,
        "moe_intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "tie_word_embeddings": False,
    },
}  # fmt: skip
_WARM_UP = 3
_GIB = 2**30


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    config = _config(options)
    products.ROW_BYTES_AT_ONCE = options.row_bytes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    started = time.monotonic()
    base = random_base(config, device, is_packed=not options.peer)
    load = {"base_s": round(time.monotonic() - started, 1), "base_gib": _allocated()}
    model = _with_adapters(base, options)
    load |= {
        "loaded_gib": _allocated(),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "packed": sum(e.packed_parameters for _, e in packed_experts(base)),
    }
    _write(options, {"loaded": options.shape, "layers": config.num_hidden_layers, **load})
    if options.peer or options.plain:
        name = "transformers + peft + bitsandbytes" if options.peer else "plain"
        for rows in options.rows:
            _try(options, model, name, rows, lambda inputs: _plain_step(model, inputs))
        return
    _reset_peak()
    started = time.monotonic()
    step, text = attach(model, on_cpu=device == "cpu")
    attached = round(time.monotonic() - started, 1)
    _write(options, {"attach": text, "attach_s": attached, "attach_peak_gib": _peak()})
    assert step is not None
    for rows in options.rows:
        for policy in options.policies:
            step.use_policy(ActivationPolicy[policy])
            _try(options, model, policy, rows, lambda inputs: step(inputs, _trained(inputs)))
            steps = step._attached_steps()
            captured = {"graphs": steps.num_captured, "why_not": steps.why_not_captured}
            _write(options, {"captured": policy, "rows": rows, **captured})
            step.release()


def random_base(config: Any, device: str, *, is_packed: bool) -> Any:
    """A causal LM of the config's shape on the device, its experts packed, or in bf16."""
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device(device):
        config_kwargs = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        if config.model_type == "gpt_oss":
            config_kwargs["attn_implementation"] = "eager"
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, **config_kwargs)
    config.num_hidden_layers = layers
    decoder, kind = model.model, type(model.model.layers[0])
    del decoder.layers[0]
    torch.set_default_dtype(torch.bfloat16)
    _fill(model, device)
    for index in range(layers):
        with torch.device("meta"):
            layer = kind(config, index)
        if is_packed:
            make_packable(layer)
        _quantize(layer, device)
        _fill(layer, device)
        decoder.layers.append(layer)
    torch.set_default_dtype(torch.float32)
    with torch.device(device):
        decoder.rotary_emb = type(decoder.rotary_emb)(config)
    model.is_loaded_in_4bit = True  # what peft asks for
    return model.requires_grad_(False)


def _quantize(layer: nn.Module, device: str) -> None:
    kept = set(routers(layer))
    for name, linear in list(layer.named_modules()):
        if isinstance(linear, nn.Linear) and name not in kept:
            weight = _random(linear.weight.shape, device)
            bias = None if linear.bias is None else torch.zeros(linear.out_features, device=device)
            layer.set_submodule(name, nf4_linear(weight, bias, torch.bfloat16))
    for _, experts in packed_experts(layer):
        for name in experts.names:
            experts.pack(name, _random(experts.shapes[name], device))
        experts.show(None)


def _fill(module: nn.Module, device: str) -> None:
    """Matrices of random values, the rest ones, from the meta device to a real one."""
    for owner in module.modules():
        for name, weight in list(owner.named_parameters(recurse=False)):
            if weight.is_meta:
                value = (
                    _random(weight.shape, device)
                    if weight.dim() > 1
                    else torch.ones(weight.shape, device=device)
                )
                setattr(owner, name, nn.Parameter(value.bfloat16(), requires_grad=False))


def _random(shape: Any, device: str) -> torch.Tensor:
    """Normal, of the spread with which many layers neither explode nor vanish."""
    weight = torch.empty(tuple(shape), dtype=torch.bfloat16, device=device)
    return weight.normal_(std=(3 * shape[-1]) ** -0.5)


def _with_adapters(base: Any, options: argparse.Namespace) -> Any:
    targets = _fused(base) if options.peer else expert_targets(base)
    targets = targets if options.expert_r else []
    if options.peer:
        kwargs = {"use_reentrant": False}
        base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs=kwargs)
    config = LoraConfig(
        r=16, lora_alpha=16, target_modules=linear_targets(base), target_parameters=targets,
        rank_pattern=dict.fromkeys(targets, options.expert_r),
        alpha_pattern=dict.fromkeys(targets, options.expert_r), task_type="CAUSAL_LM",
    )  # fmt: skip
    with visible_experts(base):
        model = get_peft_model(base, config)
    if options.plain:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    return model.train()


def _fused(base: nn.Module) -> list[str]:
    return sorted({".".join(n.split(".")[3:]) for n, p in base.named_parameters() if p.dim() == 3})


def _plain_step(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    on_device = {k: v.to(model.device, non_blocking=True) for k, v in inputs.items()}
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = model(**on_device, use_cache=False, output_router_logits=False).loss
    loss.backward()
    return loss.detach()


def _trained(inputs: dict[str, torch.Tensor]) -> float:
    return float(inputs["labels"].shape[0] * (inputs["labels"].shape[1] - 1))


def _try(
    options: argparse.Namespace, model: Any, name: str, rows: str, step: Callable[..., torch.Tensor]
) -> None:
    try:
        line = _measure(options, model, name, rows, step)
    except torch.OutOfMemoryError:
        line = {"oom": True}
    _write(options, {"step": name, "rows": rows, **line})
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    torch.cuda.empty_cache()


def _measure(
    options: argparse.Namespace, model: Any, name: str, rows: str, step: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    batch, length = map(int, rows.split("x"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    on_gpu = model.device.type == "cuda"
    optimizer = (
        bnb.optim.PagedAdamW8bit(parameters, lr=1e-4)
        if on_gpu
        else torch.optim.AdamW(parameters, lr=1e-4)
    )
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size

    def once() -> tuple[float, torch.Tensor]:
        ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
        positions = torch.arange(length).expand(batch, -1).contiguous()
        started = time.perf_counter()
        loss = step({"input_ids": ids, "labels": ids.clone(), "position_ids": positions})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait()
        return time.perf_counter() - started, loss

    _reset_peak()
    seconds, losses = zip(*(once() for _ in range(_WARM_UP + options.steps)), strict=True)
    median = statistics.median(seconds[_WARM_UP:])
    peak, reserved = _peak(), torch.cuda.max_memory_reserved() if on_gpu else 0
    kernels = _kernel_ms(once) if on_gpu else 0.0
    if name in options.profile and on_gpu:
        _profile(options.out / f"profile-{name}-{rows}.txt", once)
    return {
        "tok_s": round(batch * length / median),
        "step_s": round(median, 4),
        "first_s": [round(s, 2) for s in seconds[:_WARM_UP]],
        "kernels_ms": kernels,
        "peak_gib": peak,
        "reserved_gib": round(reserved / _GIB, 2),
        "losses": [round(float(x), 4) for x in (losses[0], losses[-1])],
    }


def _kernel_ms(once: Callable[[], object]) -> float:
    """What the GPU computes in a step, the optimizer's part included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        once()
    events = (e for e in found.events() or () if e.device_type == torch.autograd.DeviceType.CUDA)
    kernels = (e for e in events if not e.name.startswith("Optimizer"))
    return round(sum(e.device_time for e in kernels) / 1e3, 1)


def _profile(file: Path, once: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        once()
    table = found.key_averages().table(
        sort_by="cuda_time_total", row_limit=60, max_name_column_width=90
    )
    file.write_text(table)


def _write(options: argparse.Namespace, line: dict[str, Any]) -> None:
    if torch.cuda.is_available():
        line["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(line), flush=True)
    with (options.out / "experts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _allocated() -> float:
    return round(torch.cuda.memory_allocated() / _GIB, 2) if torch.cuda.is_available() else 0.0


def _peak() -> float:
    return round(torch.cuda.max_memory_allocated() / _GIB, 2) if torch.cuda.is_available() else 0.0


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _config(options: argparse.Namespace) -> Any:
    shape = dict(SHAPES[options.shape])
    config = AutoConfig.for_model(**shape, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    if options.layers:
        config.num_hidden_layers = options.layers
    config.output_router_logits = False
    return config


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--rows", nargs="+", default=["4x2048", "1x2048"])
    parser.add_argument("--policies", nargs="+", default=["LAYER"])
    parser.add_argument("--expert-r", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--row-bytes", type=int, default=products.ROW_BYTES_AT_ONCE)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--profile", nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
