"""One real run through the command line: seconds to the first step, tokens/s, peak memory.

    python benchmarks/command_to_step.py --shape qwen3-8b --max-length 2048 --batch 4 --steps 20

Prints one JSON line. The base has random weights (see random_base.py), the data is generated text.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from random_base import SHAPES, write_base

from qlora_space.core.demo import BASE_FOLDER, TRAIN_FILE
from qlora_space.core.events import Metric
from qlora_space.runs import RunFolder, read_events

_SKIPPED_STEPS = 5  # first kernels and allocations


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        base = options.base or (
            BASE_FOLDER if options.shape == "demo" else Path(scratch) / options.shape
        )
        if not base.exists():
            write_base(options.shape, base)
        data = _write_rows(
            Path(scratch) / "rows.jsonl", options.steps * options.batch * options.max_length
        )
        for line in (
            _measure(options, base, data, Path(scratch) / f"home{i}")
            for i in range(options.repeats)
        ):
            print(json.dumps(line), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=("demo", *SHAPES), default="demo")
    parser.add_argument(
        "--base", type=Path, default=None, help="a folder that random_base.py wrote"
    )
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--scratch", default=None, help="a folder with room for the base")
    return parser.parse_args()


def _write_rows(file: Path, tokens: int) -> Path:
    """Plain text rows, so that every token is trained on."""
    text = TRAIN_FILE.read_text("utf-8")
    with file.open("w") as stream:
        written = 0
        while written < 6 * tokens:  # the tokenizer needs fewer than 6 characters a token
            for start in range(0, len(text), 4000):
                stream.write(json.dumps({"text": text[start : start + 4000]}) + "\n")
                written += 4000
    return file


def _measure(options: argparse.Namespace, base: Path, data: Path, home: Path) -> dict[str, object]:
    command = [
        sys.executable, "-m", "qlora_space", "train", "--json", "--base", str(base), "--dataset", str(data),
        "--max-length", str(options.max_length), "--per-device-train-batch-size", str(options.batch),
        "--gradient-accumulation-steps", "1", "--max-steps", str(options.steps), "--bits", str(options.bits),
        "--eval-fraction", "0", "--save-steps", "1000000", "--optim", "adamw_torch",
        "--gradient-checkpointing" if options.checkpointing else "--no-gradient-checkpointing",
    ]  # fmt: skip
    started = time.time()
    done = subprocess.run(
        command,
        env=os.environ | {"QLORA_SPACE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    run = RunFolder(home / "runs" / json.loads(done.stdout)["run_id"])
    events, _ = read_events(run.events_file)
    steps = [e for e in events if isinstance(e, Metric) and "loss" in e.values]
    steady = [e.values["tokens_per_second"] for e in steps[_SKIPPED_STEPS:]]
    phases = {"worker": next(e.time for e in events if e.kind == "started")}
    for e in events:
        if e.kind == "phase":
            phases.setdefault(e.name, e.time)
    plan = run.plan()
    return {
        "shape": options.shape, "bits": options.bits, "batch": options.batch, "max_length": options.max_length,
        "gradient_checkpointing": plan.gradient_checkpointing, "place": plan.hardware.name,
        "tokens_per_second": round(statistics.median(steady)),
        "peak_gib": round(steps[-1].values["peak_gib"], 2), "card_gib": round(steps[-1].values["card_gib"], 2),
        "estimated_gib": plan.estimate.peak_gib, "least_gib": plan.estimate.least_gib,
        "command_to_first_step_seconds": round(steps[0].time - started, 1),
        "estimated_seconds": plan.estimate.seconds, "seconds": round(events[-1].time - started, 1),
        "phases": {name: round(at - started, 1) for name, at in phases.items()},
        "loss": round(steps[-1].values["loss"], 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
