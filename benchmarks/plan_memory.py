"""Whether the memory that a plan promises is what the run then takes, within 10 %: real runs on this GPU.

    python benchmarks/plan_memory.py --scratch /tmp

One line of command_to_step.py for each row of RUNS, with how far off the plan was; exit status 1 if one was off by more
than a tenth. `card_gib` is what nvidia-smi shows in the end, with what torch keeps to use again. A GPU with 80 GiB has
room for all of them; they take six minutes on an H200.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from random_base import write_base

_MOST_OFF = 0.10
# (shape, bits, max_length, rows at once, gradient checkpointing)
RUNS = (
    ("qwen3-0.6b", 16, 1024, 4, True),
    ("qwen3-0.6b", 8, 1024, 4, True),
    ("qwen3-0.6b", 4, 1024, 4, True),
    ("qwen3-0.6b", 4, 512, 1, True),
    ("qwen3-0.6b", 4, 1024, 16, True),
    ("qwen3-0.6b", 16, 1024, 4, False),
    ("qwen3-8b", 16, 2048, 2, True),
    ("qwen3-8b", 8, 2048, 2, True),
    ("qwen3-8b", 4, 2048, 2, True),
    ("qwen3-8b", 4, 4096, 1, True),
)
STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", default=None, help="a folder with room for the bases")
    parser.add_argument("--shape", default=None, help="the runs of this shape only")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for run in RUNS:
            if options.shape in (None, run[0]):
                line = _measured(Path(scratch), *run)
                worst = max(worst, abs(line["off"]))
                print(json.dumps(line), flush=True)
    raise SystemExit(worst > _MOST_OFF)


def _measured(
    scratch: Path, shape: str, bits: int, max_length: int, rows: int, checkpointing: bool
) -> dict:
    base = scratch / shape
    if not base.exists():
        write_base(shape, base)
    command = [
        sys.executable, str(Path(__file__).with_name("command_to_step.py")), "--shape", shape, "--base", str(base),
        "--bits", str(bits), "--max-length", str(max_length), "--batch", str(rows), "--steps", str(STEPS),
        "--checkpointing" if checkpointing else "--no-checkpointing", "--scratch", str(scratch),
    ]  # fmt: skip
    line = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return line | {"off": round(line["estimated_gib"] / line["peak_gib"] - 1, 3)}


if __name__ == "__main__":
    main()
