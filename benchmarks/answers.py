"""Answers per second: the engine beside the model's own passes, in one run.

    python benchmarks/answers.py demo
    python benchmarks/answers.py FOLDER --bits 4 --tokens 32        any checkpoint
    python benchmarks/answers.py qwen3-8b                           random NF4 weights of that shape, on a GPU

Pairs: base and adapter beside each other, one token each a step. Rows: 32 prompts at once with the adapter. Greedy, no
answer ends early; the first call of each way is not counted. Lines of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from qlora_space.core.comparison import Sampling
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.generate.answers import _answer_rows
from qlora_space.generate.engine import Ask, Engine
from qlora_space.generate.paired import PassRows
from qlora_space.lowbit import add_lora
from qlora_space.model import load_base

_SHAPES = {
    "qwen3-8b": {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", help="demo, a folder, or a shape")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--engine-only", action="store_true")
    options = parser.parse_args()
    model = _loaded(options.base, options.bits)
    prompt = [17 + 3 * i for i in range(options.prompt_tokens)]
    count = options.tokens
    engine = Engine(model, set(), ["default"])
    pair = [Ask(prompt, count, (strength,)) for strength in (0.0, 1.0)]
    rows = [Ask(prompt[: len(prompt) - i % 9], count) for i in range(32)]
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "pairs": (count, lambda: engine.answers(pair)),
        "rows": (32 * count, lambda: engine.answers(rows)),
    }
    if not options.engine_only:
        passes, sampling = PassRows(model), Sampling(max_new_tokens=count)
        asked = [list(ask.prompt) for ask in rows]
        tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
        ways |= {
            "pairs by the model's passes": (count, lambda: list(passes.stream(prompt, sampling))),
            "rows by generate": (
                32 * count,
                lambda: _answer_rows(model, tokenizer, asked, count, {-1}, lambda: None),
            ),
        }
    for name, (tokens, answer) in ways.items():
        with torch.inference_mode():
            answer()
            seconds = _seconds(answer)
        first = _seconds(lambda: next(engine.stream(pair))) if name == "pairs" else None
        line = {
            "base": options.base,
            "bits": options.bits,
            "way": name,
            "per_second": round(tokens / seconds, 1),
        }
        print(
            json.dumps(line | ({"first_token_ms": round(1000 * first, 1)} if first else {})),
            flush=True,
        )


def _seconds(call: Callable[[], Any]) -> float:
    started = time.monotonic()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started


def _loaded(name: str, bits: int) -> PeftModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = BASE_FOLDER if name == "demo" else Path(name)
    base = _random(name) if name in _SHAPES else load_base(folder, bits, device)
    model = add_lora(base, r=16, lora_alpha=16, lora_dropout=0.0, seed=0, revision=None)
    for key, weight in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(weight, std=0.005)
    return model.eval()


def _random(name: str) -> Any:
    """NF4 weights layer by layer, on the GPU."""
    torch.manual_seed(0)
    from qlora_space.fast import nf4_linear

    config = AutoConfig.for_model("qwen3", **_SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    depth = len(model.model.layers)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for child, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    size = (linear.out_features, linear.in_features)
                    # As GPT-2 begins: a network that grows with depth would make much of each rounding.
                    spread = 0.02 / (2 * depth) ** 0.5 if child in ("o_proj", "down_proj") else 0.02
                    weight = torch.randn(size, device="cuda", dtype=torch.bfloat16) * spread
                    setattr(parent, child, nf4_linear(weight, None, torch.bfloat16))
    for module in model.modules():
        for key, value in list(module._parameters.items()):
            if value is not None and value.is_meta:
                real = torch.randn(value.shape, device="cuda", dtype=torch.bfloat16) * 0.02
                module._parameters[key] = torch.nn.Parameter(
                    1 + real if "norm" in type(module).__name__.lower() else real,
                    requires_grad=False,
                )
    rotary = type(model.model.rotary_emb)(config)
    model.model.rotary_emb = rotary.to("cuda")
    return model.requires_grad_(False)


if __name__ == "__main__":
    main()
