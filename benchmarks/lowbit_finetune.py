"""Fine-tuning a 2-bit base from each adapter init: rate tuned per init, several seeds, held-out loss of the answers.

    python benchmarks/lowbit_finetune.py BASE CALIBRATION.jsonl ROWS.jsonl [MORE_ROWS.json] --out runs.jsonl
        [--seeds 1 2 3] [--lr 2e-3 6e-4 6e-3] [--jobs 8] [--seconds 240]

ROWS has "question" and "answer", or a JSON list of ShareGPT "conversations". The calibration is half general text, half
training rows, as in the app. A seed draws the calibration, the order of the rows and the zero init's A. Every run is a
line of --out at once, with its curve; then a table: mean over the seeds at the best rate, and the 95 % interval of
Student's t. A small model leaves a GPU waiting for the CPU, so --jobs processes share it; each does all its inits at
the first rate, then at the second. No run begins later than --seconds. Products in TF32 where a GPU has it.
"""

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from lowbit_table import HEAL_TOKENS, read_windows
from torch import multiprocessing, nn
from transformers import AutoTokenizer

from qlora_space.lowbit.architecture import empty_model
from qlora_space.lowbit.build import Recipe, quantize_base
from qlora_space.lowbit.distill import HealRecipe, default_heal_learning_rate, heal
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.repair import add_lora, apply_adapter_inits
from qlora_space.lowbit.shards import Shards, load_blocks
from qlora_space.lowbit.windows import Windows

Row = tuple[torch.Tensor, torch.Tensor]  # ids and labels
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "user"}
_LONGEST = 512
_T_OF_TWO = 4.303  # Student's t, 95 %, two degrees of freedom
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Job:
    """One adapter init of one set and seed."""

    rows: Path
    init: str
    seed: int


@dataclass(frozen=True)
class Training:
    """AdamW without decay, cosine unless constant. max_grad_norm: infinite for none."""

    lr: float
    max_grad_norm: float = 0.3
    warm_up: float = 0.1
    constant: bool = False


def main() -> None:
    options = parsed()
    jobs = [Job(*x) for x in product(options.rows, options.inits, options.seeds)]
    options.out.unlink(missing_ok=True)
    in_processes(options, jobs, work)
    print(summary([json.loads(line) for line in options.out.open()]), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calibrated", action="store_true")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--inits", nargs="*", default=["heal", "eora", "zero", "svd", "16 bit"])
    parser.add_argument("--lr", type=float, nargs="*", default=[2e-3, 6e-4, 6e-3, 2e-4])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout", type=int, default=200, help="at most; a fifth of a small set")
    parser.add_argument("--heal-steps", type=int, default=120)
    parser.add_argument("--out", type=Path, required=True)
    add_process_options(parser)
    return parser.parse_args()


def add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf)


def in_processes(options: argparse.Namespace, jobs: Sequence, function: Callable) -> None:
    """function(options, a part of the jobs, time.time() of the end) in each of --jobs processes."""
    end = time.time() + options.seconds
    started = []
    for i in range(min(options.jobs, len(jobs))):
        arguments = (options, jobs[i :: options.jobs], end)
        one = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
        one.start()
        started.append(one)
    for one in started:
        one.join()


def set_up(jobs: int) -> None:
    """This process's share of the GPU: none may take the memory of another."""
    torch.set_float32_matmul_precision("high")
    if DEVICE == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.9 / jobs)


def work(options: argparse.Namespace, jobs: Sequence[Job], end: float) -> None:
    set_up(options.jobs)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    general = read_windows(tokenizer, options.calibration, options.windows * 2, _LONGEST)
    sets = {rows: split(tokenizer, rows, options.heldout) for rows in options.rows}
    kept: dict[Job, nn.Module] = {}
    for lr, job in product(options.lr, jobs):
        if time.time() > end:
            return
        held, train = sets[job.rows]
        if job not in kept:
            windows = calibration(general, train, options.windows, job.seed)
            kept[job] = initialized(options, job, windows)
        line = run(options, kept[job], job.seed, train, held, Training(lr))
        append(
            options.out,
            {
                "set": job.rows.stem,
                "start": job.init,  # "start" as in docs/figures
                "seed": job.seed,
            }
            | line,
        )


def append(out: Path, line: dict) -> None:
    """One write, so that lines of several processes do not mix."""
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({name: value for name, value in line.items() if name != "train"}, flush=True)


def split(tokenizer, file: Path, most: int) -> tuple[list[Row], list[Row]]:
    """Held out and training rows, the same for every seed."""
    rows = encoded(tokenizer, file)
    random.Random(0).shuffle(rows)
    held = min(most, len(rows) // 5)
    return rows[:held], rows[held:]


def calibration(general: torch.Tensor, train: list[Row], count: int, seed: int) -> Windows:
    own = [ids for ids, _ in random.Random(seed).sample(train, len(train))]
    own = torch.cat(own)[: count // 2 * _LONGEST]
    own = own[: len(own) // _LONGEST * _LONGEST].view(-1, _LONGEST)
    order = torch.randperm(len(general), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([own, general[order[: count - len(own)]]])
    return Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(ids))


def encoded(tokenizer, file: Path) -> list[Row]:
    """Only the assistant's words have labels."""
    text = file.read_text("utf-8")
    raw = json.loads(text) if text.startswith("[") else [json.loads(x) for x in text.splitlines()]
    rows = []
    for row in raw:
        found = tokenizer.apply_chat_template(
            messages_of(row),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = found["input_ids"][:_LONGEST], found["assistant_masks"][:_LONGEST]
        ids, mask = torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)
        if mask.any():
            rows.append((ids, ids.masked_fill(~mask, -100)))
    return rows


def messages_of(row: dict) -> list[dict]:
    if "question" in row:
        return [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    return [
        {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
        for turn in row["conversations"]
    ]


def initialized(
    options: argparse.Namespace, job: Job, windows: Windows, alpha: int = 0
) -> nn.Module:
    """A peft model with its adapter init; lora_alpha = r by default."""
    if job.init == "16 bit":
        return adapted(whole(options.base), options.rank, alpha, job.seed)
    init = "eora" if job.init == "heal" else job.init
    recipe = Recipe(
        options.bits, options.group_size, init, options.rank, calibrated=options.calibrated
    )  # type: ignore[arg-type]
    made = quantize_base(options.base, recipe, windows, device=DEVICE, dtype=torch.float32)
    model = adapted(dequantized_once(made.model), options.rank, alpha, job.seed)
    if init != "zero":
        apply_adapter_inits(model, made.adapter_inits)
    if job.init == "heal":
        lr = default_heal_learning_rate(made.model.config.hidden_size)
        recipe = HealRecipe(options.heal_steps, HEAL_TOKENS, lr)
        heal(model, windows, made.teacher_states, recipe)
    return model


def whole(folder: Path):
    base, shards = empty_model(folder), Shards(folder)
    for _ in load_blocks(base, shards, DEVICE, torch.float32):
        pass
    return base


def dequantized_once(model):
    """The same frozen numbers as plain linears: a base this small need not be dequantized at every step."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowBitLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(module.dequantized(torch.float32), requires_grad=False)
            model.set_submodule(name, plain)
    return model


def adapted(base, rank: int, alpha: int, seed: int):
    return add_lora(base, r=rank, lora_alpha=alpha or rank, seed=seed)


def run(options, initial, seed: int, train, held, training: Training) -> dict:
    """One training of a copy of the model."""
    begun = time.monotonic()
    model = copy.deepcopy(initial)
    before = mean_loss(model, held)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=0.0)
    schedule = schedule_of(optimizer, training, options.steps)
    chooser, losses, norms = random.Random(seed), [], []
    for _ in range(options.steps):
        loss = loss_of(model, chooser.sample(train, options.rows_per_step))
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(weights, training.max_grad_norm))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    after = mean_loss(model, held)
    curve = {"train": losses, "grad_norm": norms}
    return (
        asdict(training)
        | {"before": round(before, 4), "loss": round(after, 4)}
        | {"seconds": round(time.monotonic() - begun, 1)}
        | {name: [round(float(x), 4) for x in values] for name, values in curve.items()}
    )


def schedule_of(optimizer, training: Training, steps: int):
    if training.constant:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, total_steps=steps, pct_start=training.warm_up, cycle_momentum=False
    )


def loss_of(model, rows: list[Row], reduction: str = "mean") -> torch.Tensor:
    """Of the words with labels; the head makes logits for no others."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([i for i, _ in rows], batch_first=True)
    labels = pad([x for _, x in rows], batch_first=True, padding_value=-100)[:, 1:].flatten()
    asked = (labels != -100).nonzero().flatten()
    base = model.get_base_model()
    states = base.get_decoder()(input_ids=ids.to(DEVICE), use_cache=False).last_hidden_state
    states = states[:, :-1].flatten(0, 1)[asked.to(DEVICE)]
    logits = base.get_output_embeddings()(states).float()
    return nn.functional.cross_entropy(logits, labels[asked].to(DEVICE), reduction=reduction)


@torch.no_grad()
def mean_loss(model, rows: list[Row]) -> float:
    total = count = 0.0
    for at in range(0, len(rows), 25):
        part = rows[at : at + 25]
        total += float(loss_of(model, part, "sum"))
        count += sum(int((x[1:] != -100).sum()) for _, x in part)
    return total / count


def summary(runs: list[dict]) -> str:
    """Per set and init at the rate of the least mean loss of those that all seeds were trained with."""
    lines = ["| set | init | best rate | before | after, mean ± 95 % | seeds |"]
    lines.append("|---|---|---|---|---|---|")
    for name, init in dict.fromkeys((r["set"], r["start"]) for r in runs):
        own = [r for r in runs if (r["set"], r["start"]) == (name, init)]
        by_rate = {lr: [r["loss"] for r in own if r["lr"] == lr] for lr in {r["lr"] for r in own}}
        most = max(map(len, by_rate.values()))
        full = {lr: found for lr, found in by_rate.items() if len(found) == most}
        best = min(full, key=lambda lr, full=full: statistics.mean(full[lr]))
        before = statistics.mean({r["seed"]: r["before"] for r in own}.values())
        after = f"{statistics.mean(full[best]):.4f}"
        if most == 3:
            after += f" ± {_T_OF_TWO * statistics.stdev(full[best]) / math.sqrt(3):.4f}"
        lines.append(f"| {name} | {init} | {best:g} | {before:.3f} | {after} | {most} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
