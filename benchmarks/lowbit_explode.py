"""Does training a broken 2-bit base from a zero init explode or stall, where a repaired one trains? Curves.

    python benchmarks/lowbit_explode.py BASE CALIBRATION.jsonl ROWS.jsonl --out curves.jsonl [--jobs 8] [--seconds 60]

The base is broken on purpose, without any search of ranges: 2 bits between the least and the largest of 128 weights
("128"), or symmetric around zero up to the largest of a row ("row"). "usual": AdamW at a constant rate, no warm-up, no
clipping, lora_alpha = 2r, ranks 32 and 64. "ours": cosine, 10 % warm-up, clipped at 0.3, lora_alpha = r. The 16-bit
base is trained beside them.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lowbit_finetune import (
    Job,
    Training,
    add_process_options,
    append,
    calibration,
    in_processes,
    initialized,
    run,
    set_up,
    split,
)
from lowbit_table import read_windows
from transformers import AutoTokenizer

from qlora_space.lowbit import build
from qlora_space.lowbit.grid import Grid, Quantized

_RATES = (2e-4, 1e-3)
_BY_STEP = (0, 10, 20, 50, 100, 150)


@dataclass(frozen=True)
class Case:
    group: str  # "128" or "row"
    start: str
    rank: int
    lr: float
    recipe: str  # "usual" or "ours"


def main() -> None:
    options = parsed()
    cases = [
        Case(group, start, rank, lr, recipe)
        for recipe, ranks in (("usual", (32, 64)), ("ours", (32,)))
        for group in ("128", "row")
        for start in ("zero", "eora")
        for rank in ranks
        for lr in _RATES
    ]
    cases += [Case("", "16 bit", 32, lr, "usual") for lr in _RATES]
    options.out.unlink(missing_ok=True)
    in_processes(options, cases, work)
    steps = [step for step in _BY_STEP if step < options.steps]
    names = ("group", "start", "rank", "lr", "recipe", "before")
    print("|", *(f"{x} |" for x in (*names, *steps, "after")))
    for line in sorted(map(json.loads, options.out.open()), key=lambda x: str(x["recipe"])):
        what = [line[name] for name in names]
        print("|", *(f"{x} |" for x in (*what, *(line["train"][s] for s in steps), line["loss"])))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=151)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    add_process_options(parser)
    return parser.parse_args()


def work(options: argparse.Namespace, cases: Sequence[Case], end: float) -> None:
    set_up(options.jobs)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    general = read_windows(tokenizer, options.calibration, options.windows * 2, 512)
    held, train = split(tokenizer, options.rows, options.heldout)
    windows = calibration(general, train, options.windows, 1)
    build.quantize = broken
    for case in cases:
        if time.time() > end:
            return
        options.bits, options.rank, options.calibrated = 2, case.rank, False
        options.group_size = 128 if case.group == "128" else 0
        is_usual = case.recipe == "usual"
        alpha = case.rank * 2 if is_usual else case.rank
        model = initialized(options, Job(options.rows, case.start, 1), windows, alpha)
        usual = Training(case.lr, max_grad_norm=math.inf, warm_up=0.0, constant=True)
        line = run(options, model, 1, train, held, usual if is_usual else Training(case.lr))
        append(options.out, asdict(case) | line)


def broken(weight: torch.Tensor, grid: Grid) -> Quantized:
    """Least to largest weight of a group; at group size 0 symmetric, for a whole row. Zeros are whole numbers."""
    m, n = weight.shape
    bits, size = grid.bits, grid.group_size or n
    grid = Grid(bits, size, zero_bits=bits, zero_start=0.0, zero_step=1.0)
    grouped, top = weight.float().view(m, n // size, size), 2**bits - 1
    low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
    if size == n:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / top).clamp_min(2**-24).half()
    zeros = (-low / scales.float()).round().clamp(0, top)
    codes = ((grouped / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, top)
    return Quantized(grid, codes.view(m, n).byte(), scales, zeros.byte())


if __name__ == "__main__":
    main()
