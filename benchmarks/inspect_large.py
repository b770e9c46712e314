"""Inspect a large JSONL as the page does: seconds and peak memory of the inspecting process.

    python benchmarks/inspect_large.py --gib 1
    python benchmarks/inspect_large.py --gib 1 --row-bytes 1500 --prepare

Prints one JSON line. With --prepare also the whole way to packed tokens. The rows are the demo's, or
with --row-bytes chats of about that size, written with the demo's words.
"""

import argparse
import itertools
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qlora_space.core.demo import TRAIN_FILE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--row-bytes", type=int, default=0, help="default: the demo's rows")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--scratch", default=None, help="a folder with room for it")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.measure, options.prepare)))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        rows = _chats(options.row_bytes) if options.row_bytes else _numbered_rows()
        file = _write(Path(scratch) / "rows.jsonl", int(options.gib * 2**30), rows)
        # A process of its own: this one's peak would count.
        command = [sys.executable, __file__, "--measure", str(file)]
        subprocess.run([*command, *(["--prepare"] if options.prepare else [])], check=True)


def _write(file: Path, num_bytes: int, rows: Iterator[dict]) -> Path:
    with file.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            stream.write(json.dumps(row) + "\n")
            if number % 1000 == 0 and stream.tell() > num_bytes:
                break
    return file


def _chats(row_bytes: int) -> Iterator[dict]:
    """One to three questions with answers of very different lengths, no two the same."""
    words = sorted(set(re.findall(r"\w+[.?]?", TRAIN_FILE.read_text("utf-8"))))
    chance = random.Random(0)
    while True:
        turns = chance.randint(1, 3)
        sizes = [chance.lognormvariate(0, 0.7) for _ in range(2 * turns)]
        num_words = chance.lognormvariate(0, 0.5) * row_bytes / 9
        yield {
            "messages": [
                {"role": role, "content": " ".join(chance.choices(words, k=1 + int(share)))}
                for role, share in zip(
                    ("user", "assistant") * turns,
                    (num_words * size / sum(sizes) for size in sizes),
                    strict=True,
                )
            ]
        }


def _numbered_rows() -> Iterator[dict]:
    """The demo's rows again and again, no two the same."""
    rows = [json.loads(line) for line in TRAIN_FILE.read_text("utf-8").splitlines()]
    column = next(name for name, value in rows[0].items() if isinstance(value, str | list))
    return (_numbered(row, column, number) for number, row in enumerate(itertools.cycle(rows)))


def _numbered(row: dict, column: str, number: int) -> dict:
    value = row[column]
    if isinstance(value, str):
        return row | {column: f"{number}. {value}"}
    first = value[0] | {"content": f"{number}. {value[0]['content']}"}
    return row | {column: [first, *value[1:]]}


def _measure(file: Path, with_prepare: bool) -> dict[str, object]:
    from qlora_space.core.demo import BASE_FOLDER
    from qlora_space.core.facts import Hardware
    from qlora_space.core.request import TrainingRequest
    from qlora_space.data import inspect_dataset, prepare
    from qlora_space.hub import model_facts
    from qlora_space.plan import resolve

    base = model_facts("demo", None, None)
    request = TrainingRequest(dataset=str(file), base="demo")
    warm_up = TrainingRequest(dataset="demo", base="demo")
    inspect_dataset(warm_up, base, BASE_FOLDER, None)  # the inspector of the page is warm, too
    baseline = _peak_mib()
    started = time.monotonic()
    found = inspect_dataset(request, base, BASE_FOLDER, None, allow_local=True)
    line: dict[str, object] = {
        "gib": round(file.stat().st_size / 2**30, 2),
        "num_rows": found.num_rows,
        "rows_looked_at": found.rows_looked_at,
        "inspect_seconds": round(time.monotonic() - started, 1),
        "baseline_mib": baseline,
        "inspect_peak_mib": _peak_mib(),
    }
    if with_prepare:
        hardware = Hardware(
            name="CPU", device="cpu", memory_gib=16, free_gib=16, cpu_cores=2, disk_free_gib=100
        )
        plan = resolve(request, base, found.dataset, hardware, eval_split="", columns=found.mapping)
        started = time.monotonic()
        made = prepare(plan, file.parent / "data", _show_progress)
        line |= {
            "prepare_seconds": round(time.monotonic() - started, 1),
            "tokens": made.manifest.tokens,
            "waste_fraction": made.manifest.waste_fraction,
            "prepare_peak_mib": _peak_mib(),
        }
    return line


def _show_progress(done: int, total: int) -> None:
    if done % 50_000 == 0 or done == total:
        print(f"{done:,} of {total:,} rows, {_peak_mib()} MiB", file=sys.stderr)


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
