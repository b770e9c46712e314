"""What bits cost and what an adapter init repairs: perplexity, KL and top-1 agreement, one table.

    python benchmarks/lowbit_table.py BASE CALIBRATION.jsonl HELDOUT.jsonl [--bits 4 3 2] [--rank 16 32] [--heal 0]

Texts are rows with "text". All cells share one pass over the base: same calibration, same held-out windows.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_space.lowbit.adapter_init import AdapterInit, covariance_root, solve_adapter_init
from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.build import Recipe, allocated_bits, quantize_one
from qlora_space.lowbit.distill import HealRecipe, default_heal_learning_rate, heal
from qlora_space.lowbit.evaluate import Evaluation, ReferenceEvaluator
from qlora_space.lowbit.grid import Quantized
from qlora_space.lowbit.linear import LowBitLinear, bits_per_weight
from qlora_space.lowbit.repair import add_lora, apply_adapter_inits
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.stream import CalibrationStream
from qlora_space.lowbit.windows import Windows

INITS = ("zero", "svd", "diagonal", "eora", "srr")
HEAL_TOKENS = 2048  # a step
# In the training of Qwen's models and of the base that was measured here.
_BETWEEN_DOCUMENTS = "<|endoftext|>"


def read_windows(tokenizer, file: Path, count: int, length: int) -> torch.Tensor:
    """(count, length) ids: the documents one after the other, as many whole windows as asked."""
    ids: list[int] = []
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS, tokenizer.eos_token_id)
    for line in file.open():
        ids += tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        ids.append(between)
        if len(ids) >= count * length:
            break
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3, 2])
    parser.add_argument("--rank", type=int, nargs="*", default=[16, 32])
    parser.add_argument("--inits", nargs="*", default=list(INITS))
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--gptq", action="store_true")
    parser.add_argument("--mean-bits", type=float, default=0.0, help="mixed; name one of --bits")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout-windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--heal", type=int, default=0, metavar="STEPS")
    parser.add_argument("--heal-lr", type=float)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--out", type=Path)
    print(table(parser.parse_args()))


def table(options: argparse.Namespace) -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    calibration = read_windows(tokenizer, options.calibration, options.windows, options.length)
    held = read_windows(tokenizer, options.heldout, options.heldout_windows, options.length)
    ids = torch.cat([calibration, held])
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(calibration))
    mixed = Recipe(2, options.group_size, mean_bits=options.mean_bits)
    widths = (
        allocated_bits(options.base, mixed, windows, device, torch.float32)
        if options.mean_bits
        else {}
    )
    model = empty_model(options.base)
    stream = CalibrationStream(model, Shards(options.base), windows, device, torch.float32)
    cells: dict[tuple[int, str, int], dict[str, tuple]] = {}
    seconds: dict[tuple[int, str, int], float] = {}
    for block in stream:
        for bits in options.bits:
            done: dict[str, Quantized] = {}
            for init in options.inits:
                for r in [options.rank[0]] if init == "zero" else options.rank:
                    recipe = Recipe(bits, options.group_size, init, r, options.gptq)
                    key, begun = (bits, init, r), time.monotonic()
                    cells.setdefault(key, {}).update(solved(block, recipe, done, widths))
                    seconds[key] = seconds.get(key, 0) + time.monotonic() - begun
        say(f"{block.name} done")
    evaluator = ReferenceEvaluator.on_heldout(windows, stream.hidden_states, model)
    reference = figures(evaluator.reference())
    rows = [{"bits": 16, "init": "none", "r": 0, "bits_per_weight": 16.0} | reference]
    if options.nf4:
        rows.append(
            {"bits": "nf4", "init": "none", "r": 0, "bits_per_weight": 4.127}
            | figures(evaluator.evaluate(nf4(options.base, device)))
        )
    say(rows[-1])
    for key, inits in cells.items():
        low = low_bit_model(model, inits, key[2])
        row = {
            "bits": options.mean_bits or key[0],
            "init": key[1],
            "r": key[2],
            "bits_per_weight": bits_per_weight(low),
            "seconds": round(seconds[key], 1),
        }
        rows.append(row | figures(evaluator.evaluate(low)))
        say(rows[-1])
        if options.heal and key[1] == "eora" and key[2] == options.rank[-1]:
            begun = time.monotonic()
            lr = options.heal_lr or default_heal_learning_rate(model.config.hidden_size)
            recipe = HealRecipe(options.heal, HEAL_TOKENS, lr)
            heal(low, windows, stream.hidden_states, recipe, say_kl)
            row = row | {"init": "eora+heal", "seconds": round(time.monotonic() - begun, 1)}
            rows.append(row | figures(evaluator.evaluate(low)))
            say(rows[-1])
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))
    return markdown(rows)


def figures(found: Evaluation) -> dict[str, float]:
    return {"ppl": found.perplexity, "kl": found.kl, "top1": found.top1}


def solved(
    block, recipe: Recipe, done: dict[str, Quantized], widths: dict[str, int]
) -> dict[str, AdapterInit]:
    """All inits share the codes of the whole weight, which `done` holds."""
    found, roots = {}, {}
    for name, linear in block.linears.items():
        c = block.covariances[name]
        root = roots[id(c)] if id(c) in roots else roots.setdefault(id(c), covariance_root(c))
        own = replace(recipe, bits=widths.get(f"{block.name}.{name}", recipe.bits))
        if name not in done:
            done[name] = quantize_one(linear.weight, c, own)

        def again(w: torch.Tensor, c=c, linear=linear, name=name, own=own) -> Quantized:
            is_whole = torch.equal(w, linear.weight)
            return done[name] if is_whole else quantize_one(w, c, own)

        found[f"{block.name}.{name}"] = solve_adapter_init(
            linear.weight, root, again, recipe.init, recipe.r
        )
    return found


def low_bit_model(model, inits: dict[str, AdapterInit], r: int):
    """A copy of the 16-bit model with its linears packed and the adapter initialized."""
    low = copy.deepcopy(model)
    for name, found in inits.items():
        low.set_submodule(
            name,
            LowBitLinear.from_quantized(
                found.quantized, model.get_submodule(name).bias, torch.float32
            ),
        )
    low.requires_grad_(False)
    low = add_lora(low, r=r, lora_alpha=r)
    apply_adapter_inits(low, {name: (found.a, found.b) for name, found in inits.items()})
    return low.eval()


def nf4(base: Path, device: str):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.float32, device_map={"": device}
    ).eval()


def markdown(rows: list[dict]) -> str:
    lines = [
        "| bits | init | rank | bits per weight | perplexity | KL | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = f"{row['bits']} | {row['init']} | {row['r'] or ''} | {row['bits_per_weight']:.2f}"
        lines.append(f"| {what} | {row['ppl']:.2f} | {row['kl']:.4f} | {row['top1']:.1%} |")
    return "\n".join(lines)


def say_kl(done: int, total: int, kl: float) -> None:
    if done % 10 == 0:
        say(f"heal {done}/{total}: KL {kl:.4f}")


def say(text: object) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
