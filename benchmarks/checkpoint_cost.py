"""On a GPU: what a checkpoint costs, a run that is killed and resumed beside one that is not, and memory that runs out.

    python benchmarks/checkpoint_cost.py --out results [--shape qwen3-8b] [--scratch /dev/shm]

Under three minutes on one H100. Writes results/checkpoint_cost.json and prints it. The base has random
weights of the real shape (random_base.py), the data is generated text; every run is a worker process.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import itertools

from random_base import SHAPES, write_base

from qlora_space.data import open_source
from qlora_space.demo import TRAIN_FILE
from qlora_space.events import Event, Metric
from qlora_space.facts import DatasetFacts, TokenLengths
from qlora_space.hub import model_facts
from qlora_space.machine import read_hardware
from qlora_space.plan import resolve
from qlora_space.request import TrainingRequest
from qlora_space.runs import RunFolder, create_run, read_events

_GIB = 2**30
_LONG_ROW_TOKENS = 16_384


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-8b")
    parser.add_argument("--scratch", default="/dev/shm", help="a folder with room for the base")
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file, result = options.out / "checkpoint_cost.json", {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for name, measure in (("kill", _killed_and_not), ("memory", _out_of_memory)):
            started = time.monotonic()
            try:
                result[name] = measure(options, Path(scratch))
            except Exception as error:  # what was measured before is kept
                result[name] = {"error": f"{type(error).__name__}: {error}"[-1500:]}
            result[name]["wall_seconds"] = round(time.monotonic() - started, 1)
            file.write_text(json.dumps(result, indent=1))
    print(file.read_text())


# A kill


def _killed_and_not(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    base = scratch / options.shape
    write_base(options.shape, base)
    rows = _text_rows(scratch / "rows.jsonl", [8_000] * (options.steps * 8))
    wanted = {
        "max_length": 2048, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "max_steps": options.steps, "gradient_checkpointing": True, "optim": "paged_adamw_8bit",
    }  # fmt: skip
    plans = {"save_steps": 5}
    whole = _new_run(scratch / "whole", base, rows, wanted, plans)
    _work(whole)
    broken = _new_run(scratch / "broken", base, rows, wanted, plans)
    told_at_kill = _kill_after(broken, step=options.steps * 3 // 4)
    _work(broken)
    return _compared(whole, broken, told_at_kill)


def _compared(whole: RunFolder, broken: RunFolder, told_at_kill: int) -> dict[str, object]:
    events, place = _events(whole), whole.plan().hardware.name
    first, second = _attempts(_events(broken))
    losses, before, after = (_losses(part) for part in (events, first, second))
    steps = [e for e in events if isinstance(e, Metric) and "loss" in e.values]
    pairs = [
        (last, event)
        for last, event in itertools.pairwise(events)
        if event.kind == "checkpoint" and event.step and last.kind == "metric"
    ]
    seconds = [event.time - last.time for last, event in pairs]  # copying to the host included
    cost = statistics.median(seconds) if seconds else None
    return {
        "place": place,
        "loss_unbroken": losses,
        "loss_killed": before,
        "loss_resumed": after,
        "kill_after_step": told_at_kill,
        "resumed_after_step": min(after) - 1,
        "largest_relative_difference": {
            "two_runs_before_the_kill": _difference(losses, before),
            "redone_steps": _difference(before, after),
            "after_the_resume": _difference(losses, after),
        },
        "checkpoint_bytes": [event.num_bytes for _, event in pairs],
        "checkpoint_seconds": [round(s, 3) for s in seconds],
        "step_seconds": round(
            statistics.median(b.time - a.time for a, b in itertools.pairwise(steps)),
            3,
        ),
        "share_of_time_at_the_default_cadence": round(cost / (120 + cost), 5) if cost else None,
        "peak_gib": steps[-1].values["peak_gib"],
        "seconds_to_resume": round(
            next(e.time for e in second if e.kind == "metric") - second[0].time, 1
        ),
    }


def _kill_after(run: RunFolder, step: int) -> int:
    worker = _start(run)
    while worker.poll() is None:
        done = max((e.step for e in _events(run) if e.kind == "metric"), default=0)
        if done >= step:
            time.sleep(0.3)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            return done
        time.sleep(0.05)
    raise RuntimeError(f"it ended before it was killed: {_events(run)[-1]}")


# Memory


def _out_of_memory(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Rows of 16k tokens without recomputing: two do not fit into 40 GiB, one does not fit into 12 GiB."""
    base = scratch / "qwen3-0.6b"
    write_base("qwen3-0.6b", base)
    rows = _text_rows(scratch / "long.jsonl", [_LONG_ROW_TOKENS * 8] * 2)
    wanted = {
        "max_length": _LONG_ROW_TOKENS, "packing": False, "gradient_checkpointing": False, "max_steps": 1,
        "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2,
    }  # fmt: skip
    ladder = _new_run(scratch / "ladder", base, rows, wanted, {})
    _work_with(ladder, free_gib=40)
    alone = wanted | {"per_device_train_batch_size": 1}
    poor = _new_run(scratch / "poor", base, rows, alone, {})
    _work_with(poor, free_gib=12)
    metrics = [e for e in _events(ladder) if isinstance(e, Metric) and "loss" in e.values]
    return {
        "with_40_gib": [e.text for e in _events(ladder) if e.kind == "note" and "Memory" in e.text],
        "ends_with": _events(ladder)[-1].model_dump(exclude={"seq", "time"}),
        "peak_gib": [e.values["peak_gib"] for e in metrics],
        "with_12_gib": _events(poor)[-1].model_dump(exclude={"seq", "time"}),
    }


def _work_with(run: RunFolder, free_gib: float) -> None:
    """While another process holds the rest of the GPU's memory."""
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
            _work(run)
        finally:
            holder.communicate()


# Runs


def _new_run(home: Path, base: Path, rows: Path, wanted: dict, plan: dict) -> RunFolder:
    source = open_source(str(rows), allow_local=True)
    lengths = TokenLengths(
        p50=1500, p95=2000, max=2000, mean=1500, truncated_fraction=0, trained_fraction=1
    )
    dataset = DatasetFacts(
        id=str(rows), sha=source.sha, format="text", num_rows=len(rows.read_text().splitlines()),
        is_exact=True, lengths=lengths,
    )  # fmt: skip
    request = TrainingRequest(
        base=str(base), dataset=str(rows), eval_fraction=0, num_samples=0, **wanted
    )
    facts = model_facts(str(base), None, None)
    made = resolve(request, facts, dataset, read_hardware(home)).model_copy(update=plan)
    return create_run(home / "runs", request, made)


def _text_rows(file: Path, letters: list[int]) -> Path:
    """A JSON line for each number of letters; a token is about four of them."""
    text = TRAIN_FILE.read_text("utf-8")
    with file.open("w") as stream:
        for i, count in enumerate(letters):
            start = i * 997 % (len(text) // 2)
            content = (text[start:] + text * (count // len(text) + 1))[:count]
            stream.write(json.dumps({"text": f"{i} {content}"}) + "\n")
    return file


def _start(run: RunFolder) -> subprocess.Popen:
    command = [sys.executable, "-m", "qlora_space.worker", "train", str(run.path)]
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=env, stderr=run.log_file.open("a"))


def _work(run: RunFolder) -> None:
    _start(run).wait()
    last = _events(run)[-1]
    print(f"{run.path}: {last}", file=sys.stderr, flush=True)


def _events(run: RunFolder) -> list[Event]:
    return read_events(run.events_file)[0]


def _attempts(events: list[Event]) -> list[list[Event]]:
    starts = [i for i, event in enumerate(events) if event.kind == "started"]
    return [events[a:b] for a, b in zip(starts, [*starts[1:], len(events)], strict=True)]


def _losses(events: list[Event]) -> dict[int, float]:
    return {
        e.step: round(e.values["loss"], 6)
        for e in events
        if isinstance(e, Metric) and "loss" in e.values
    }


def _difference(a: dict[int, float], b: dict[int, float]) -> float | None:
    both = a.keys() & b.keys()
    return max((abs(a[s] - b[s]) / abs(a[s]) for s in both), default=None)


if __name__ == "__main__":
    main()
