"""Kill -9 at a random moment of a training, go on, compare every loss and the adapter bit for bit.

    OMP_NUM_THREADS=1 python -m benchmarks.kill_storm --trials 300

Prints one JSON line: trials, exact ones, the 95 % upper bound on the failure rate, where the kills fell.
"""

import argparse
import collections
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

from tests.train.storm import finish, kill_once, outcome, small_run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, failures, steps = random.Random(options.seed), [], collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        run = small_run(home)
        started = time.monotonic()
        finish(run)
        seconds, reference = time.monotonic() - started, outcome(run)
        for trial in range(options.trials):
            shutil.rmtree(home / "runs", ignore_errors=True)
            run = small_run(home)
            steps[kill_once(run, rng, seconds)] += 1
            try:
                finish(run)
                if outcome(run) != reference:
                    failures.append(f"{trial}: other numbers")
            except (RuntimeError, AssertionError) as error:
                failures.append(f"{trial}: {error}"[:300])
    bound = 1 - 0.05 ** (1 / options.trials) if not failures else None
    print(json.dumps({
        "trials": options.trials, "exact": options.trials - len(failures), "failures": failures,
        "upper_bound_95": bound, "kills_by_step": dict(sorted(steps.items())),
        "seconds_unkilled": round(seconds, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
