"""Kill -9 a training at a random moment, go on, and compare every loss and the adapter bit for bit.

    python benchmarks/kill_storm.py --n 300 --jobs 14

Each attempt is a worker process (`qlora_space.places.worker train`) of its own, forked from this one so that torch
is imported once. Half of the kills are aimed at a save, with a random delay; the others fall anywhere
between the start of the training and the end of the report. Prints a JSON line for each kill and a summary
with the 95 % upper bound on the share of resumes that are not exact.
"""

import argparse
import collections
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[1]))

from qlora_space.places import worker
from qlora_space.runs import RunFolder
from tests.train.small import Outcome, events_of, outcome, small_plan, small_run

OPTIMIZERS = ("adamw_torch", "paged_adamw_8bit")


def attempt(run: RunFolder) -> int:
    """Start a worker; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.dup2(os.open(run.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        status = worker.main(["train", str(run.path)])
    finally:
        os._exit(status)


def finish(run: RunFolder) -> None:
    """One attempt to its end. Raises RuntimeError if it fails."""
    status = os.waitstatus_to_exitcode(os.waitpid(attempt(run), 0)[1])
    last = events_of(run)[-1]
    if status or last.kind != "finished":
        raise RuntimeError(f"exit {status}, {last}\n{run.log_file.read_text()[-1500:]}")


def kill_once(run: RunFolder, rng: random.Random, seconds: float) -> dict[str, object] | None:
    """Kill one attempt -9; returns where that was, None if it had ended by itself."""
    child, aims_at_save = attempt(run), rng.random() < 0.5
    if aims_at_save:
        found = _wait_for_save(run, child, rng.randrange(8))
        time.sleep(rng.uniform(0, 0.02))
    else:
        found = _wait_for_training(run, child)
        time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not found or status != -signal.SIGKILL:
        return None
    steps = [e.step for e in events_of(run) if e.kind == "metric"]
    phases = [e.name for e in events_of(run) if e.kind == "phase"]
    half = [p.name for p in run.checkpoints_folder.glob(".step-*.part")] if steps else []
    return {"step": max(steps, default=0), "phase": phases[-1], "half_written": half}


def _wait_for_training(run: RunFolder, child: int) -> bool:
    while not any(e.kind == "phase" and e.name == "train" for e in events_of(run)):
        if _has_ended(child):
            return False
        time.sleep(0.005)
    return True


def _wait_for_save(run: RunFolder, child: int, number: int) -> bool:
    """Until the half-written folder of save `number` (from 0) of this attempt is there."""
    seen: set[str] = set()
    while len(seen) <= number:
        if run.checkpoints_folder.is_dir():
            seen |= {p for p in os.listdir(run.checkpoints_folder) if p.endswith(".part")}
        if _has_ended(child):
            return False
        time.sleep(0.0005)
    return True


def _has_ended(child: int) -> bool:
    """Leaves it to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@dataclass(frozen=True)
class Storm:
    """The same run, unbroken and broken."""

    references: dict[str, Outcome]
    seconds: float  # from the first step of an unbroken one to its end

    def trial(self, seed: int) -> dict[str, object]:
        rng = random.Random(seed)
        optim = OPTIMIZERS[seed % len(OPTIMIZERS)]
        where, failure = None, ""
        while where is None:
            with tempfile.TemporaryDirectory() as home:
                run = small_run(Path(home), small_plan(optim=optim, num_samples=1))
                where = kill_once(run, rng, self.seconds)
                if where is None:
                    continue
                try:
                    finish(run)
                    if outcome(run) != self.references[optim]:
                        failure = "other numbers than those of the unbroken run"
                except (RuntimeError, AssertionError, OSError) as error:
                    failure = str(error)[-600:]
        return {"seed": seed, "optim": optim, "exact": not failure, "failure": failure} | where


def unbroken(scratch: Path) -> Storm:
    references, seconds = {}, 0.0
    for optim in OPTIMIZERS:
        run = small_run(scratch / optim, small_plan(optim=optim, num_samples=1))
        finish(run)
        references[optim] = outcome(run)
        events = events_of(run)
        began = next(e.time for e in events if e.kind == "phase" and e.name == "train")
        seconds = max(seconds, events[-1].time - began)
    return Storm(references, seconds)


def upper_bound_95(failures: int, n: int) -> float:
    """Largest rate at which so few failures in n are seen with 5 % chance (Clopper-Pearson), by bisection."""
    low, high = failures / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        chance = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(failures + 1))
        low, high = (p, high) if chance > 0.05 else (low, p)
    return high


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=50, help="kills")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        storm = unbroken(Path(scratch))
    seeds = range(options.seed, options.seed + options.n)
    results = []
    with multiprocessing.get_context("fork").Pool(min(options.jobs, options.n)) as pool:
        for result in pool.imap_unordered(storm.trial, seeds):
            results.append(result)
            print(json.dumps(result), flush=True)
    failures = sum(not r["exact"] for r in results)
    print(json.dumps({
        "kills": len(results), "exact": len(results) - failures,
        "upper_bound_95": round(upper_bound_95(failures, len(results)), 4),
        "inside_a_save": sum(bool(r["half_written"]) for r in results),
        "kills_by_step": dict(sorted(collections.Counter(r["step"] for r in results).items())),
        "kills_by_phase": collections.Counter(r["phase"] for r in results),
        "seconds_unbroken": round(storm.seconds, 2),
        "seconds": round(time.monotonic() - started, 1),
    }))  # fmt: skip
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
