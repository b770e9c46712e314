"""The embedded demo, measured: exact answers and losses before and after, seconds, memory, for several seeds.

    python benchmarks/demo_figures.py --seeds 42 1 2

Each seed trains with the default settings, on the embedded rows, and is scored on held-out rows that are
generated here from a seed of their own, so that nobody can have tuned on them. One JSON line per seed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from demo.task import lines_of, task_rows
from qlora_space.core.demo import TRAIN_FILE

_FRESH_SEED = 20_261_122
_ROWS, _UNSEEN_SHARE = 200, 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument(
        "--flags", default="", help="further flags for `train`, e.g. '--preset quick'"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "tickets"
        data.mkdir()
        (data / "train.jsonl").write_bytes(TRAIN_FILE.read_bytes())
        fresh = task_rows(_FRESH_SEED, _ROWS, _UNSEEN_SHARE)
        (data / "test.jsonl").write_text(lines_of(fresh), encoding="utf-8")
        for seed in options.seeds:
            print(
                json.dumps(_measure(data, seed, options.flags.split(), Path(scratch))), flush=True
            )


def _measure(data: Path, seed: int, flags: list[str], scratch: Path) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "qlora_space",
        "train",
        "--json",
        "--dataset",
        str(data),
        "--seed",
        str(seed),
        *flags,
    ]
    environment = os.environ | {"QLORA_SPACE_HOME": str(scratch / "home")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout)["report"]
    base, trained = report["scores"]
    worse = trained["general_loss"] / base["general_loss"] - 1
    return {
        "seed": seed,
        "exact_match_before": base["exact_match"], "exact_match_after": trained["exact_match"],
        "heldout_loss_before": round(base["heldout_loss"], 4), "heldout_loss_after": round(trained["heldout_loss"], 4),
        "general_loss_before": round(base["general_loss"], 4), "general_loss_after": round(trained["general_loss"], 4),
        "general_loss_worse_percent": round(100 * worse, 1),
        "steps": report["steps"], "train_seconds": report["train_seconds"],
        "total_seconds": report["total_seconds"], "peak_gib": report["peak_gib"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
