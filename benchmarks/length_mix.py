"""Trained tokens per second on rows of real lengths: packed by us, padded by the peers. One JSON line.

    python benchmarks/length_mix.py ours|trl|liger|unsloth BASE_FOLDER alpaca.json TOKENIZER --recompute full|none

alpaca.json: rows of instruction, input, output. Only their lengths under the tokenizer are used, the ids are random
(a base of random weights from benchmarks/random_base.py will do). ours: documents packed into rows of --max-length,
--rows of them at once. Peers: --rows-padded rows at once in random order, padded to the longest, answers trained; trl
as it comes, Liger, Unsloth as its raw step. --trainer padded|packed: through SFTTrainer instead, as it decides by
itself, or packed like ours. All trained tokens over all seconds of --steps after four (after twelve with --trainer).
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from peer_step import load_peer

_IGNORED, _WARM_UP = -100, 4


def main() -> None:
    options = _options()
    run = _ours if options.who == "ours" else _through_trainer if options.trainer else _peer
    settings = {"who": options.who, "recompute": options.recompute, "trainer": options.trainer}
    print(json.dumps({**settings, **run(options)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["ours", "trl", "liger", "unsloth"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--recompute", choices=["full", "none"], default="full")
    parser.add_argument("--trainer", choices=["padded", "packed"])
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rows-padded", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()


def _lengths(data: Path, tokenizer_folder: Path) -> list[tuple[int, int]]:
    """(tokens, trained tokens) of each row."""
    tokenizer = _tokenizer(tokenizer_folder)
    rows = json.loads(data.read_text())
    count = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    sizes = [(count(f"{r['instruction']}\n{r['input']}\n"), count(r["output"]) + 1) for r in rows]
    return [(prompt + answer, answer) for prompt, answer in sizes]


def _document(size: int, trained: int, vocabulary: int) -> tuple[list[int], list[int]]:
    ids = [random.randrange(vocabulary) for _ in range(size)]
    return ids, [_IGNORED] * (size - trained) + ids[size - trained :]


def _ours(options: argparse.Namespace) -> dict:
    from peft import LoraConfig, get_peft_model

    from qlora_space.data.packing import pack
    from qlora_space.fast import ActivationPolicy, attach
    from qlora_space.model import load_base
    from qlora_space.train.batches import PackedCollator, PackedRow

    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_base(options.folder, 4, "cuda"), lora)
    step, text = attach(model)
    assert step is not None, text
    is_all = options.recompute == "none"
    step.use_policy(ActivationPolicy.ALL if is_all else ActivationPolicy.OFFLOAD_QKV)
    vocabulary, lengths = model.config.vocab_size, _lengths(options.data, options.tokenizer)

    def packed_row(members: list[int]) -> PackedRow:
        documents = [_document(*lengths[i], vocabulary) for i in members]
        ids, labels = ([x for d in documents for x in d[part]] for part in (0, 1))
        return {"input_ids": ids, "labels": labels, "seq_lengths": [len(d[0]) for d in documents]}

    kept = [i for i, (size, _) in enumerate(lengths) if size <= options.max_length]
    packed = pack([lengths[i][0] for i in kept], options.max_length)
    rows = [packed_row([kept[i] for i in row]) for row in packed]
    random.Random(0).shuffle(rows)
    collate = PackedCollator(pad_token_id=0)
    optimizer = torch.optim.AdamW(step.fast.parameters, lr=1e-4, fused=True)

    def steps() -> Iterator[tuple[int, int]]:
        for start in range(0, (options.steps + _WARM_UP) * options.rows, options.rows):
            batch = collate([rows[(start + k) % len(rows)] for k in range(options.rows)])
            trained = int((batch["labels"] != _IGNORED).sum())
            step(batch, trained)  # type: ignore[arg-type]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield trained, batch["input_ids"].numel()

    return _measure(steps())


def _peer(options: argparse.Namespace) -> dict:
    import bitsandbytes as bnb

    model = load_peer(options.who, str(options.folder), options.max_length, options.recompute)
    optimizer = bnb.optim.PagedAdamW8bit(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4
    )
    lengths = _lengths(options.data, options.tokenizer)
    order = random.Random(0).sample(range(len(lengths)), len(lengths))
    vocabulary, many = model.config.vocab_size, options.rows_padded

    def steps() -> Iterator[tuple[int, int]]:
        for start in range(0, (options.steps + _WARM_UP) * many, many):
            members = [lengths[order[(start + k) % len(order)]] for k in range(many)]
            batch = {k: v.cuda() for k, v in _padded(members, vocabulary).items()}
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield int((batch["labels"] != _IGNORED).sum()), batch["labels"].numel()

    return _measure(steps())


def _through_trainer(options: argparse.Namespace) -> dict:
    """What a user of the peer gets from SFTTrainer on rows that are tokenized already."""
    model = load_peer(options.who, str(options.folder), options.max_length, options.recompute)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    lengths = _lengths(options.data, options.tokenizer)
    kept = [pair for pair in lengths if pair[0] <= options.max_length]
    rows = [_document(size, trained, model.config.vocab_size) for size, trained in kept]
    masks = [[int(label != _IGNORED) for label in labels] for _, labels in rows]
    data = Dataset.from_dict({"input_ids": [ids for ids, _ in rows], "completion_mask": masks})
    is_packed, warm_up = options.trainer == "packed", 3 * _WARM_UP
    sizes, ends = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args, **_kwargs):
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=warm_up + options.steps, packing=is_packed,
            per_device_train_batch_size=options.rows if is_packed else options.rows_padded,
            max_length=options.max_length, gradient_checkpointing=options.recompute == "full",
            optim="paged_adamw_8bit", bf16=True, save_strategy="no", report_to="none", logging_steps=10**6,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=_tokenizer(options.tokenizer),
            callbacks=[Clock()],
        )
        step = trainer.training_step

        def counted(model, inputs, *args, **kwargs):
            labels = inputs["labels"]
            sizes.append((int((labels != _IGNORED).sum()), labels.numel()))
            return step(model, inputs, *args, **kwargs)

        trainer.training_step = counted
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    trained = sum(count for count, _ in sizes[warm_up:])
    return {
        "trained_tok_s": round(trained / (ends[-1] - ends[warm_up - 1])),
        "trained_share": round(sum(c for c, _ in sizes) / sum(n for _, n in sizes), 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "gpu": torch.cuda.get_device_name(),
    }


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer  # Unsloth wants to be imported before it

    return AutoTokenizer.from_pretrained(folder)


def _padded(members: list[tuple[int, int]], vocabulary: int) -> dict[str, torch.Tensor]:
    width = max(size for size, _ in members)
    shape = (len(members), width)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, _IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (size, trained) in enumerate(members):
        for tensor, values in zip((ids, labels), _document(size, trained, vocabulary), strict=True):
            tensor[row, :size] = torch.tensor(values)
        mask[row, :size] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _measure(steps: Iterator[tuple[int, int]]) -> dict:
    """All trained tokens over all seconds: steps differ in size."""
    torch.cuda.reset_peak_memory_stats()
    trained, positions, seconds = [], [], []
    started = time.perf_counter()
    for count, size in steps:
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        trained.append(count)
        positions.append(size)
        started = time.perf_counter()
    rate = sum(trained[_WARM_UP:]) / sum(seconds[_WARM_UP:])
    return {
        "trained_tok_s": round(rate),
        "trained_share": round(sum(trained) / sum(positions), 3),
        "step_ms": round(statistics.median(seconds[_WARM_UP:]) * 1e3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "gpu": torch.cuda.get_device_name(),
    }


if __name__ == "__main__":
    main()
