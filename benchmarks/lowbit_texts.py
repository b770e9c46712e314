"""Texts of docs/LOWBIT.md's tables on learned bases, half C4 and half Alpaca rows: calibration.jsonl, heldout.jsonl.

    python benchmarks/lowbit_texts.py BASE C4.jsonl ALPACA.json FOLDER [--windows 128] [--heldout-windows 40]

Texts of the two kinds take turns, whichever has fewer tokens of this base so far comes next. Alpaca rows are in the
base's chat template, or in plain words where it has none. The held-out texts come after those of the calibration.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

LENGTH = 512  # tokens a window


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("c4", type=Path)
    parser.add_argument("alpaca", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--heldout-windows", type=int, default=40)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    kinds = (general(options.c4), chats(options.alpaca, tokenizer))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, windows in (
        ("calibration", options.windows),
        ("heldout", options.heldout_windows),
    ):
        texts, shares = taken(kinds, tokenizer, windows * LENGTH)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (options.folder / f"{name}.jsonl").write_text(rows)
        print(f"{name}: {len(texts)} texts, {shares[0]} tokens of C4, {shares[1]} of Alpaca")


def general(file: Path) -> Iterator[str]:
    return (json.loads(line)["text"] for line in file.open())


def chats(file: Path, tokenizer) -> Iterator[str]:
    for row in json.loads(file.read_bytes()):
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["output"]},
        ]
        if tokenizer.chat_template:
            yield tokenizer.apply_chat_template(messages, tokenize=False)
        else:
            yield f"Question: {question}\nAnswer: {row['output']}"


def taken(kinds: tuple[Iterator[str], ...], tokenizer, tokens: int) -> tuple[list[str], list[int]]:
    """At least so many tokens of texts, and the tokens of each kind."""
    texts, counts = [], [0] * len(kinds)
    while sum(counts) < tokens:
        fewest = counts.index(min(counts))
        text = next(kinds[fewest])
        texts.append(text)
        counts[fewest] += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return texts, counts


if __name__ == "__main__":
    main()
