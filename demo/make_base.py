"""Train the demo's base model from scratch: `python -m demo.make_base --out DIR`.

One process generates text, trains a tokenizer and a small Qwen3 model on it, evaluates and saves them.
"""

# ruff: noqa: T201 - a script that reports on the terminal
import argparse
import math
import os
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from demo.base_tokenizer import (
    CONTEXT,
    END_OF_TURN,
    PADDING,
    VOCABULARY,
    train_tokenizer,
    with_dropout,
    with_template,
)
from demo.scores import mean_loss, report
from demo.text import END_OF_TEXT, GENERAL_SEED, documents

ROW_LENGTH = 512
WARMUP_STEPS = 300
SCORE_SEED = 700_001


class PackedText(IterableDataset):
    """Endless batches of shape (rows, ROW_LENGTH), int16; every row begins with the beginning of a document."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: int) -> None:
        self.tokenizer, self.seed, self.rows = tokenizer, seed, rows
        self.dropping = with_dropout(tokenizer, 0.1)

    def token_lists(self, seed: int) -> Iterator[list[int]]:
        texts = documents(seed)
        for tokenizer in cycle([self.dropping, *[self.tokenizer] * 4]):
            batch = [text + END_OF_TEXT for _, text in islice(texts, 200)]
            yield from (one.ids for one in tokenizer.encode_batch_fast(batch))

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        rows: list[list[int]] = []
        row: list[int] = []
        for ids in self.token_lists(self.seed + (worker.id if worker else 0)):
            row += ids
            if len(row) >= ROW_LENGTH:
                rows.append(row[:ROW_LENGTH])
                row = []
            if len(rows) == self.rows:
                yield torch.tensor(rows, dtype=torch.int16)
                rows = []


def new_model(tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.token_to_id(PADDING),
    )
    return Qwen3ForCausalLM(config)


def make_optimizer(model: Qwen3ForCausalLM, lr: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)


def lr_factor(step: int, progress: float) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def row_loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


def train(
    model: Qwen3ForCausalLM, batches: Iterator[torch.Tensor], args: argparse.Namespace
) -> int:
    """Trains until the steps or the minutes are used up; returns the number of steps."""
    device = model.device
    optimizer = make_optimizer(model, args.rate)
    loss_of = torch.compile(row_loss) if device.type == "cuda" else row_loss
    start, step = time.time(), 0
    while step < args.steps and time.time() - start < args.minutes * 60:
        progress = max(step / args.steps, (time.time() - start) / (args.minutes * 60))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * lr_factor(step, progress)
        rows = next(batches).to(device, non_blocking=True).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % args.every == 0 or step == 1:
            line = f"step {step} loss {loss.item():.4f} seconds {time.time() - start:.1f}"
            print(line, flush=True)
    return step


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(out)
    with_template(tokenizer).save_pretrained(out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=100_000.0, help="stop after this long")
    parser.add_argument("--rows", type=int, default=128, help="rows of 512 tokens a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--every", type=int, default=100, help="steps between printed lines")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    tokenizer = train_tokenizer()
    loader = DataLoader(
        PackedText(tokenizer, args.seed, args.rows),
        batch_size=None, num_workers=args.workers, prefetch_factor=16,
    )  # fmt: skip
    batches = iter(loader)
    model = new_model(tokenizer).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    steps = train(model, batches, args)
    print(f"{steps} steps, {steps * args.rows * ROW_LENGTH:,} tokens", flush=True)
    save(model, tokenizer, args.out)
    texts = [text for _, text in islice(documents(GENERAL_SEED), 500)]
    wrapped = with_template(tokenizer)
    print(f"held-out loss: {mean_loss(model, wrapped, texts):.4f}")
    print(report(model, wrapped, SCORE_SEED), flush=True)


if __name__ == "__main__":
    main()
