"""Fine-tuning a 2-bit base from each start: learning rate tuned per start, three seeds, held-out loss of the answers.

    python benchmarks/lowbit_finetune.py BASE CALIBRATION.jsonl ROWS.jsonl [--out FILE]

ROWS has "question" and "answer", or a JSON list of ShareGPT "conversations". The calibration is half general text,
half training rows, as in the app. Curves of all runs go to --out. Products in TF32 where a GPU has it.

With several starts at once (a process each, --starts) a GPU is used better: it waits for the CPU otherwise.
"""

import argparse
import copy
import json
import math
import random
import statistics
import time
from pathlib import Path

import torch
from lowbit_table import read_windows
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from qlora_space.lowbit.base import heal_learning_rate
from qlora_space.lowbit.build import Recipe, put_starts, quantize_base
from qlora_space.lowbit.heal import HealRecipe, heal
from qlora_space.lowbit.shards import Shards, skeleton
from qlora_space.lowbit.stream import Windows, blocks_of, fill_outside

Row = tuple[torch.Tensor, torch.Tensor]  # ids and labels
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "user"}
_LONGEST, _HELDOUT = 512, 200
_T_OF_TWO = 4.303  # Student's t, 95 %, two degrees of freedom


def main() -> None:
    options = parsed()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    rows = encoded(tokenizer, options.rows)
    random.Random(0).shuffle(rows)
    held, train = rows[: options.heldout], rows[options.heldout :]
    general = read_windows(tokenizer, options.calibration, options.windows, _LONGEST)
    own = torch.cat([ids for ids, _ in train])[: options.windows // 2 * _LONGEST]
    own = own[: len(own) // _LONGEST * _LONGEST].view(-1, _LONGEST)
    ids = torch.cat([own, general[: options.windows - len(own)]])
    windows = Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(ids))
    runs = []
    for name in options.starts:
        model = started(options, name, windows, device)
        tuned = []
        for lr in options.lr:
            tuned.append(run(options, model, name, train, held, lr, 0, device))
            keep(options, runs + tuned)
        best = min(tuned, key=lambda r: r["loss"])
        more = [run(options, model, name, train, held, best["lr"], s, device) for s in (1, 2)]
        runs += [*tuned, *more]
        keep(options, runs)
        losses = [r["loss"] for r in (best, *more)]
        spread = _T_OF_TWO * statistics.stdev(losses) / math.sqrt(3)
        say(
            f"| {options.bits} bits, {name} | {best['lr']:g} | {best['before']:.3f} | "
            f"{statistics.mean(losses):.3f} ± {spread:.3f} | {max(best['train']):.2f} |"
        )


def keep(options: argparse.Namespace, runs: list[dict]) -> None:
    if options.out:
        options.out.write_text(json.dumps(runs))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--starts", nargs="*", default=["zero", "svd", "eora", "heal", "16 bit"])
    parser.add_argument("--lr", type=float, nargs="*", default=[2e-4, 6e-4, 2e-3, 6e-3])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout", type=int, default=_HELDOUT)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


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


def started(options: argparse.Namespace, name: str, windows: Windows, device: str):
    """A peft model in its start."""
    torch.manual_seed(0)
    if name == "16 bit":
        base = skeleton(options.base)
        shards = Shards(options.base)
        fill_outside(base, shards, device, torch.float32)
        for i in range(len(blocks_of(base))):
            shards.fill(base, f"model.layers.{i}", device, torch.float32)
        return adapted(base, options.rank)
    init = "eora" if name == "heal" else name
    recipe = Recipe(options.bits, 64, init, options.rank)  # type: ignore[arg-type]
    made = quantize_base(options.base, recipe, windows, device=device, dtype=torch.float32)
    model = adapted(made.model, options.rank)
    if init != "zero":
        put_starts(model, made.starts)
    if name == "heal":
        lr = heal_learning_rate(made.model.config.hidden_size)
        heal(model, windows, made.teacher, HealRecipe(learning_rate=lr))
    return model


def adapted(base, rank: int):
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def run(  # noqa: PLR0913
    options, start, name: str, train, held, lr: float, seed: int, device: str
) -> dict:
    """One training from a copy of the start: AdamW, cosine, 10 % warm-up, clipped at 0.3."""
    begun = time.monotonic()
    model = copy.deepcopy(start)
    before = mean_loss(model, held, device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=options.steps, pct_start=0.1, cycle_momentum=False
    )
    chooser, losses = random.Random(seed), []
    for _ in range(options.steps):
        loss = loss_of(model, chooser.sample(train, options.rows_per_step), device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.3)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    after = mean_loss(model, held, device)
    after = after if math.isfinite(after) else math.inf
    seconds = time.monotonic() - begun
    say(f"{name} lr {lr:g} seed {seed}: {before:.3f} -> {after:.3f} in {seconds:.1f} s")
    curve = [round(float(x), 4) for x in losses]
    return {"name": name, "lr": lr, "seed": seed, "before": before, "loss": after, "train": curve}


def loss_of(model, rows: list[Row], device: str, reduction: str = "mean") -> torch.Tensor:
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([i for i, _ in rows], batch_first=True).to(device)
    labels = pad([x for _, x in rows], batch_first=True, padding_value=-100).to(device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, 1:].flatten(), reduction=reduction
    )


@torch.no_grad()
def mean_loss(model, rows: list[Row], device: str) -> float:
    total = count = 0.0
    for at in range(0, len(rows), 25):
        part = rows[at : at + 25]
        total += float(loss_of(model, part, device, "sum"))
        count += sum(int((x[1:] != -100).sum()) for _, x in part)
    return total / count


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
