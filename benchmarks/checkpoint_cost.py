"""On a GPU: what a checkpoint costs, a run that is killed and resumed beside one that is not, and memory that runs out.

    python benchmarks/checkpoint_cost.py --out results [--parts cost memory kill] [--scratch /dev/shm]

About seven minutes on one H100. Writes results/checkpoint_cost.json after each part and prints it. The base
has random weights of the real shape (random_base.py), the data is generated text; every run is a worker process.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from random_base import SHAPES, write_base

from qlora_space.core.demo import TRAIN_FILE
from qlora_space.core.events import Checkpoint, Event, Metric
from qlora_space.core.facts import DatasetFacts, TokenLengths
from qlora_space.core.machine import read_hardware
from qlora_space.core.request import TrainingRequest
from qlora_space.data import open_source
from qlora_space.hub import model_facts
from qlora_space.plan import resolve
from qlora_space.runs import RunFolder, create_run, list_runs, read_events

_GIB = 2**30
_LONG_ROW_TOKENS = 16_384
_LONGEST_SECONDS = 240.0  # for the first checkpoint by time
_FREE_GIB = {"rescued": 10.5, "too_little": 8.0}  # one row of 16k tokens on an 8B needs about 8.1


def main() -> None:
    parts = {"cost": _cost, "memory": _out_of_memory, "kill": _killed_beside_whole}
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-8b")
    parser.add_argument("--scratch", default="/dev/shm", help="a folder with room for the base")
    parser.add_argument("--parts", nargs="+", choices=tuple(parts), default=list(parts))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file, result = options.out / "checkpoint_cost.json", {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        write_base(options.shape, scratch / "base")
        text_rows(scratch / "rows.jsonl", [8_000] * 400)
        for name in options.parts:
            started = time.monotonic()
            try:
                result[name] = parts[name](scratch)
            except Exception as error:  # what was measured before is kept
                result[name] = {"error": f"{type(error).__name__}: {error}"[-1500:]}
            result[name]["wall_seconds"] = round(time.monotonic() - started, 1)
            file.write_text(json.dumps(result, indent=1))
    print(file.read_text())


# What it costs


def _usual_run(scratch: Path, name: str) -> RunFolder:
    """4 x 2,048 tokens with the default cadence; both runs share a home, so that the second takes the same point."""
    wanted = {
        "max_length": 2048, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "max_steps": 2000, "optim": "paged_adamw_8bit", "name": name,
    }  # fmt: skip
    return new_run(scratch, scratch / "rows.jsonl", wanted)


def _cost(scratch: Path) -> dict[str, object]:
    """From the checkpoint at step 0 to the first one by time, as a run has it with the defaults."""
    run = _usual_run(scratch, "whole")
    worker = start_worker(run)
    _wait(run, worker, lambda: len(_saved(run)) > 1, _LONGEST_SECONDS)
    run.ask_to_stop(keep=True)
    worker.wait()
    events, saved = events_of(run), _saved(run)
    steps = [e for e in events if isinstance(e, Metric) and "loss" in e.values]
    first, by_time = saved[:2]
    return {
        "place": run.plan().hardware.name,
        "step": run.plan().step_kind,
        "checkpoints": [e.model_dump(include={"step", "num_bytes", "seconds"}) for e in saved],
        "seconds_between": round(by_time.time - first.time, 1),
        "share_of_time": round(by_time.seconds / (by_time.time - first.time), 5),
        "step_seconds": round(_median_gap(steps), 3),
        "peak_gib": steps[-1].values["peak_gib"],
        "losses": losses_of(events),
    }


def _saved(run: RunFolder) -> list[Checkpoint]:
    return [e for e in events_of(run) if isinstance(e, Checkpoint)]


def _median_gap(events: list[Metric]) -> float:
    return statistics.median(b.time - a.time for a, b in itertools.pairwise(events))


# A kill


def _killed_beside_whole(scratch: Path) -> dict[str, object]:
    """Killed three steps after a checkpoint that was asked for, resumed for ten more; beside the run of `cost`."""
    whole = next(r for r in list_runs(scratch / "runs") if r.name() == "whole")
    broken = _usual_run(scratch, "broken")
    worker = start_worker(broken)
    _wait(broken, worker, lambda: _step(broken) >= 8)
    broken.ask_for("save")
    _wait(broken, worker, lambda: len(_saved(broken)) > 1)
    saved_step = _saved(broken)[-1].step
    _wait(broken, worker, lambda: _step(broken) >= saved_step + 3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker = start_worker(broken)
    _wait(broken, worker, lambda: _step(broken) >= saved_step + 13)
    broken.ask_to_stop(keep=True)
    worker.wait()
    first, second = _attempts(events_of(broken))
    losses, before, after = (losses_of(part) for part in (events_of(whole), first, second))
    return {
        "loss_killed": before,
        "loss_resumed": after,
        "resumed_after_step": min(after) - 1,
        "largest_relative_difference": {
            "two_runs_before_the_kill": largest_difference(losses, before),
            "redone_steps": largest_difference(before, after),
            "after_the_resume": largest_difference(losses, after),
        },
        "seconds_to_resume": round(
            next(e.time for e in second if e.kind == "metric") - second[0].time, 1
        ),
    }


def _step(run: RunFolder) -> int:
    return max((e.step for e in events_of(run) if e.kind == "metric"), default=0)


def _wait(
    run: RunFolder, worker: subprocess.Popen, has_come: Callable[[], bool], seconds: float = 120.0
) -> None:
    """Returns late if it has not come. Raises RuntimeError if the worker ends before."""
    deadline = time.monotonic() + seconds
    while not has_come() and time.monotonic() < deadline:
        if worker.poll() is not None:
            raise RuntimeError(f"it ended: {events_of(run)[-1]}")
        time.sleep(0.05)


# Memory


def _out_of_memory(scratch: Path) -> dict[str, object]:
    """Rows of 16k tokens: four at once do not fit into 10.5 GiB, and a single one does not fit into 8.0 GiB."""
    rows = text_rows(scratch / "long.jsonl", [_LONG_ROW_TOKENS * 8] * 8)
    wanted = {
        "max_length": _LONG_ROW_TOKENS, "packing": False, "max_steps": 1, "optim": "adamw_torch",
        "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4,
    }  # fmt: skip
    told = {}
    for name, free_gib in _FREE_GIB.items():
        run = new_run(scratch, rows, wanted | {"name": name})
        with _memory_left(free_gib):
            start_worker(run).wait()
        events = events_of(run)
        metrics = [e for e in events if isinstance(e, Metric) and "loss" in e.values]
        told[name] = {
            "free_gib": free_gib,
            "notes": [e.text for e in events if e.kind == "note" and e.level != "info"],
            "peak_gib": [round(e.values["peak_gib"], 2) for e in metrics],
            "ends_with": events[-1].model_dump(exclude={"seq", "time"}),
        }
    return told


@contextmanager
def _memory_left(free_gib: float) -> Iterator[None]:
    """Another process holds the rest of the GPU's memory."""
    code = (
        "import sys, torch\n"
        f"size = torch.cuda.mem_get_info()[0] - {int(free_gib * _GIB)}\n"
        "held = torch.empty(size, dtype=torch.uint8, device='cuda')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError("the GPU's memory could not be held")
        try:
            yield
        finally:
            holder.communicate()


# Runs


def new_run(home: Path, rows: Path, wanted: dict[str, Any], **planned: object) -> RunFolder:
    """With home/base on rows of text; `planned` takes the place of what the plan would be."""
    source = open_source(str(rows), allow_local=True)
    lengths = TokenLengths(
        p50=1500, p95=2000, max=2000, mean=1500, truncated_fraction=0, trained_fraction=1
    )
    dataset = DatasetFacts(
        id=str(rows), sha=source.sha, format="text", num_rows=len(rows.read_text().splitlines()),
        is_exact=True, lengths=lengths,
    )  # fmt: skip
    request = TrainingRequest(
        base=str(home / "base"), dataset=str(rows), eval_fraction=0, num_samples=0, **wanted
    )
    facts = model_facts(request.base, None, None)
    plan = resolve(request, facts, dataset, read_hardware(home))
    return create_run(home / "runs", request, plan.model_copy(update=planned))


def text_rows(file: Path, letters: list[int]) -> Path:
    """A JSON line for each number of letters; a token is about four of them."""
    text = TRAIN_FILE.read_text("utf-8")
    with file.open("w") as stream:
        for i, count in enumerate(letters):
            start = i * 997 % (len(text) // 2)
            content = (text[start:] + text * (count // len(text) + 1))[:count]
            stream.write(json.dumps({"text": f"{i} {content}"}) + "\n")
    return file


def start_worker(run: RunFolder) -> subprocess.Popen:
    command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)]
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=env, stderr=run.log_file.open("a"))


def events_of(run: RunFolder) -> list[Event]:
    return read_events(run.events_file)[0]


def _attempts(events: list[Event]) -> list[list[Event]]:
    starts = [i for i, event in enumerate(events) if event.kind == "started"]
    return [events[a:b] for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]


def losses_of(events: list[Event]) -> dict[int, float]:
    return {
        e.step: round(e.values["loss"], 6)
        for e in events
        if isinstance(e, Metric) and "loss" in e.values
    }


def largest_difference(a: dict[int, float], b: dict[int, float]) -> float | None:
    both = a.keys() & b.keys()
    return max((abs(a[s] - b[s]) / abs(a[s]) for s in both), default=None)


if __name__ == "__main__":
    main()
