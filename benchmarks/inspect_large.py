"""Inspect a large JSONL as the page does: seconds and peak memory of the inspecting process.

    python benchmarks/inspect_large.py --gib 1
    python benchmarks/inspect_large.py --gib 1 --prepare

Prints one JSON line. With --prepare also the whole way to packed tokens. The rows are the demo's.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qlora_space.demo import TRAIN_FILE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--scratch", default=None, help="a folder with room for it")
    parser.add_argument("--measure", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.measure, options.prepare)))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        file = _write(Path(scratch) / "rows.jsonl", int(options.gib * 2**30))
        # A process of its own: this one's peak would count.
        command = [sys.executable, __file__, "--measure", str(file)]
        subprocess.run([*command, *(["--prepare"] if options.prepare else [])], check=True)


def _write(file: Path, num_bytes: int) -> Path:
    """The demo's rows again and again, no two the same."""
    rows = [json.loads(line) for line in TRAIN_FILE.read_text("utf-8").splitlines()]
    column = next(name for name, value in rows[0].items() if isinstance(value, str | list))
    with file.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(itertools.cycle(rows)):
            stream.write(json.dumps(_numbered(row, column, number)) + "\n")
            if number % 1000 == 0 and stream.tell() > num_bytes:
                return file
    return file


def _numbered(row: dict, column: str, number: int) -> dict:
    value = row[column]
    if isinstance(value, str):
        return row | {column: f"{number}. {value}"}
    first = value[0] | {"content": f"{number}. {value[0]['content']}"}
    return row | {column: [first, *value[1:]]}


def _measure(file: Path, with_prepare: bool) -> dict[str, object]:
    from qlora_space.data import inspect_dataset, prepare
    from qlora_space.demo import BASE_FOLDER
    from qlora_space.facts import Hardware
    from qlora_space.hub import model_facts
    from qlora_space.plan import resolve
    from qlora_space.request import TrainingRequest

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
