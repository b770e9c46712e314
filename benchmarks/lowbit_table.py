"""What bits cost and what an adapter init repairs: perplexity, KL and top-1 agreement, one table.

    python benchmarks/lowbit_table.py BASE CALIBRATION.jsonl HELDOUT.jsonl [--bits 4 3 2] [--rank 16 32] [--heal 0]
        [--ways calibrated weights] [--dtype float32] [--bos]

Texts are rows with "text". All cells share one pass over the base: same calibration, same held-out windows. Intervals
are of the mean over held-out windows, 95 % by Student's t. `calibrated` is without the app's guard on held-out text.
Each init is evaluated without its adapter too: a calibrated base is packed with its repair in view.
"""

import argparse
import copy
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_space.lowbit.adapter_init import AdapterInit
from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.build import Recipe, Seen, allocated_bits, solve
from qlora_space.lowbit.distill import HealRecipe, default_heal_learning_rate, heal
from qlora_space.lowbit.evaluate import ReferenceEvaluator
from qlora_space.lowbit.linear import LowBitLinear, bits_per_weight
from qlora_space.lowbit.repair import add_lora, apply_adapter_inits
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.stream import CalibrationStream
from qlora_space.lowbit.windows import Windows

INITS = ("zero", "svd", "diagonal", "eora", "srr")
WAYS = {"calibrated": True, "weights": False}
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
    parser.add_argument("--ways", nargs="*", default=["calibrated"], choices=list(WAYS))
    parser.add_argument("--dtype", default="float32", help="of the computations")
    parser.add_argument(
        "--bos", action="store_true", help="begin each window with the base's own first token"
    )
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
    dtype = getattr(torch, options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    calibration = read_windows(tokenizer, options.calibration, options.windows, options.length)
    held = read_windows(tokenizer, options.heldout, options.heldout_windows, options.length)
    ids = torch.cat([calibration, held])
    if options.bos:
        ids[:, 0] = tokenizer.bos_token_id
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(calibration))
    mixed = Recipe(2, options.group_size, mean_bits=options.mean_bits)
    widths = (
        allocated_bits(options.base, mixed, windows, device, dtype) if options.mean_bits else {}
    )
    model = empty_model(options.base)
    stream = CalibrationStream(model, Shards(options.base), windows, device, dtype)
    cells: dict[Recipe, dict[str, AdapterInit]] = {recipe: {} for recipe in recipes(options)}
    seconds = dict.fromkeys(cells, 0.0)
    for block in stream:
        for recipe, cell in cells.items():
            begun = time.process_time()
            cell.update(solved(block, recipe, widths))
            seconds[recipe] += time.process_time() - begun
        say(f"{block.name} done")
    evaluator = ReferenceEvaluator.on_heldout(windows, stream.hidden_states, model)
    rows = [named("16", "") | figures(evaluator, None)]
    if options.nf4:
        low = nf4(options.base, device, dtype)
        rows.append(named("nf4", "") | {"bits_per_weight": 4.127} | figures(evaluator, low))
        say(rows[-1])
    for recipe, inits in cells.items():
        low = low_bit_model(model, inits, recipe.r)
        row = named(f"{options.mean_bits or recipe.bits}", way_of(recipe), recipe.init, recipe.r)
        row |= {"bits_per_weight": bits_per_weight(low), "cpu_seconds": round(seconds[recipe], 1)}
        with low.disable_adapter():
            rows.append(row | {"init": "zero", "of": recipe.init} | figures(evaluator, low))
        say(rows[-1])
        if recipe.init != "zero":
            rows.append(row | figures(evaluator, low))
            say(rows[-1])
        if options.heal and recipe.init == "eora" and recipe.r == options.rank[-1]:
            lr = options.heal_lr or default_heal_learning_rate(model.config.hidden_size)
            healing = HealRecipe(options.heal, HEAL_TOKENS, lr)
            heal(low, windows, stream.hidden_states, healing, say_kl)
            rows.append(row | {"init": "eora+heal"} | figures(evaluator, low))
            say(rows[-1])
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))
    return markdown(rows)


def recipes(options: argparse.Namespace) -> list[Recipe]:
    return [
        Recipe(bits, options.group_size, init, r, calibrated=WAYS[way])
        for bits in options.bits
        for way in options.ways
        for init in options.inits
        for r in ([options.rank[-1]] if init == "zero" else options.rank)
    ]


def way_of(recipe: Recipe) -> str:
    return next(name for name, calibrated in WAYS.items() if calibrated == recipe.calibrated)


def named(bits: str, way: str, init: str = "zero", r: int = 0) -> dict[str, Any]:
    return {"bits": bits, "way": way, "init": init, "r": r, "bits_per_weight": 16.0}


def figures(evaluator: ReferenceEvaluator, model: nn.Module | None) -> dict[str, float]:
    """Means over held-out windows of one length, so that each window is one sample; None is the 16-bit model."""
    found = []
    for i in range(len(evaluator.ids)):
        part = slice(i, i + 1)
        one = replace(
            evaluator,
            ids=evaluator.ids[part],
            is_text=evaluator.is_text[part],
            teacher_states=evaluator.teacher_states[part],
        )
        found.append(one.evaluate(model) if model is not None else one.reference())
    kl = [one.kl for one in found]
    spread = statistics.stdev(kl) if len(kl) > 1 else math.nan
    return {
        "ppl": math.exp(statistics.mean(math.log(one.perplexity) for one in found)),
        "kl": statistics.mean(kl),
        "kl_interval": student_t(len(kl) - 1) * spread / len(kl) ** 0.5,
        "top1": statistics.mean(one.top1 for one in found),
        "windows": len(kl),
    }


def student_t(free: int) -> float:
    """97.5 % quantile, within 1 % from four degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    x = 1.959964
    terms = (x**3 + x) / 4, (5 * x**5 + 16 * x**3 + 3 * x) / 96
    return x + sum(term / free**power for power, term in enumerate(terms, 1)) if free else math.nan


def solved(block, recipe: Recipe, widths: dict[str, int]) -> dict[str, AdapterInit]:
    found: dict[str, AdapterInit] = {}
    seen = None
    for inner, linear in block.linears.items():
        covariance = block.covariances[inner]
        if seen is None or seen.covariance is not covariance:
            seen = Seen.of(covariance, calibrated=recipe.calibrated)
        name = f"{block.name}.{inner}"
        found[name] = solve(
            linear.weight, seen, replace(recipe, bits=widths.get(name, recipe.bits))
        )
    return found


def low_bit_model(model, inits: dict[str, AdapterInit], r: int):
    """A copy of the 16-bit model with its linears packed and the adapter initialized."""
    low = copy.deepcopy(model)
    for name, found in inits.items():
        linear = model.get_submodule(name)
        packed = LowBitLinear.from_quantized(found.quantized, linear.bias, linear.weight.dtype)
        low.set_submodule(name, packed)
    low.requires_grad_(False)
    low = add_lora(low, r=r, lora_alpha=r)
    apply_adapter_inits(low, {name: (found.a, found.b) for name, found in inits.items()})
    return low.eval()


def nf4(base: Path, device: str, dtype: torch.dtype):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=dtype, device_map={"": device}
    )
    for module in model.modules():  # as the app loads it (model/base.py)
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def markdown(rows: list[dict]) -> str:
    lines = [
        "| bits | way | init | rank | bits per weight | perplexity | KL | top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = f"{row['bits']} | {row['way']} | {row['init']} | {row['r'] or ''}"
        kl = f"{row['kl']:.4f} ± {row['kl_interval']:.4f}"
        size = f"{row['bits_per_weight']:.2f}"
        lines.append(f"| {what} | {size} | {row['ppl']:.2f} | {kl} | {row['top1']:.1%} |")
    return "\n".join(lines)


def say_kl(done: int, total: int, kl: float) -> None:
    if done % 10 == 0:
        say(f"heal {done}/{total}: KL {kl:.4f}")


def say(text: object) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
