"""The same training with exact products, once more with them, and with FP8 products: held-out losses side by side.

    python benchmarks/fp8_parity.py BASE_FOLDER ROWS.jsonl --steps 200 --seeds 1 2 3

ROWS.jsonl: {"messages": [{"role", "content"}, ...]} in each line; a tenth is held out. The base must have learned
weights: random ones say nothing. Needs a GPU with FP8. Held-out losses are those of the exact base. Two exact
trainings with one seed differ by the order of sums in attention: that is the noise. JSON lines.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from qlora_space.data.template.tokenizer import load_tokenizer
from qlora_space.fast import FastStep, attach, make_batch
from qlora_space.model import load_base

_LENGTH, _ROWS, _RATE = 512, 8, 2e-4
_WAYS = ("exact", "exact again", "fp8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    data = _tokens(options.base, options.rows)
    held = data[: max(_ROWS, len(data) // 10)]
    for seed in options.seeds:
        for way in _WAYS:
            losses = _train(options.base, data[len(held) :], held, options.steps, seed, way)
            print(json.dumps({"way": way, "seed": seed, **losses}), flush=True)


def _tokens(base: Path, file: Path) -> torch.Tensor:
    """(rows, length) of all texts, one after the other."""
    tokenizer = load_tokenizer(base)
    ids: list[int] = []
    for line in file.read_text().splitlines():
        turns = json.loads(line)["messages"]
        ids += tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
    return torch.tensor(ids[: len(ids) // _LENGTH * _LENGTH]).view(-1, _LENGTH)


def _train(base: Path, data: torch.Tensor, held: torch.Tensor, steps: int, seed: int, way: str):
    torch.manual_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base, 4, "cuda"), lora)
    step, text = attach(model)
    assert step is not None, text
    before, said = _loss(step, held), ""
    if way == "fp8":
        said = step.use_fp8(_inputs(data[:_ROWS]))
        step.switch_fp8(is_used=True)
    optimizer = torch.optim.AdamW(step.fast.parameters, lr=_RATE, fused=True)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        rows = data[torch.randint(len(data), (_ROWS,), generator=order)]
        losses.append(step(_inputs(rows), _ROWS * (_LENGTH - 1)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    step.switch_fp8(is_used=False)
    step.release()
    last = torch.stack(losses[-20:]).mean().item()
    return {"before": before, "after": _loss(step, held), "last_20_steps": last, "gate": said}


def _inputs(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    positions = torch.arange(rows.shape[1]).expand(len(rows), -1)
    return {"input_ids": rows, "labels": rows, "position_ids": positions}


def _loss(step: FastStep, rows: torch.Tensor) -> float:
    """Nats a token, as it is multiplied now."""
    total, count = 0.0, 0
    for part in rows.split(_ROWS):
        batch = make_batch(*_inputs(part).values())
        total += step.fast.loss_sum(batch).item()
        count += batch.num_trained
    return total / count


if __name__ == "__main__":
    main()
