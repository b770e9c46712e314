"""On a machine with several GPUs: the same run on one and on all of them, and a GPU that is lost in the middle.

    python benchmarks/data_parallel.py --out results [--parts long short same lost] [--gpus 2] [--scratch /dev/shm]

About five minutes on two H100. Writes results/data_parallel.json after each part and prints it. The base has random
weights of the real shape (random_base.py), the data is generated text; every run is a worker process. Without a GPU
the same is done by processes of a CPU, to try the script: --shape tiny --steps 6 --scratch /tmp.
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
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import psutil
import pynvml
from checkpoint_cost import (
    events_of,
    largest_difference,
    losses_of,
    new_run,
    start_worker,
    text_rows,
)
from random_base import SHAPES

from qlora_space.core.events import Metric
from qlora_space.core.machine import read_hardware
from qlora_space.runs import RunFolder

_GIB = 2**30
_SAME_STEPS = 10
_LONGEST_SECONDS = 300.0


def main() -> None:
    parts = {
        "long": lambda bench: bench.speed(rows=4),
        "short": lambda bench: bench.speed(rows=1),
        "same": lambda bench: bench.same_updates(),
        "lost": lambda bench: bench.lost_process(),
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-8b")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--scratch", default="/dev/shm", help="a folder with room for the base")
    parser.add_argument("--parts", nargs="+", choices=tuple(parts), default=list(parts))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file, result = options.out / "data_parallel.json", {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch, script = Path(folder), Path(__file__).with_name("random_base.py")
        # In a process of its own, which gives back all of the GPU's memory.
        subprocess.run([sys.executable, script, options.shape, scratch / "base"], check=True)
        text_rows(scratch / "rows.jsonl", [100_000] * 40)  # nearly all rows are full
        bench = _Bench(scratch, options.length, options.steps, options.gpus)
        for name in options.parts:
            started = time.monotonic()
            try:
                result[name] = parts[name](bench)
            except Exception as error:  # what was measured before is kept
                result[name] = {"error": f"{type(error).__name__}: {error}"[-1500:]}
            result[name]["wall_seconds"] = round(time.monotonic() - started, 1)
            file.write_text(json.dumps(result, indent=1))
    print(file.read_text())


@dataclass(frozen=True)
class _Bench:
    """All runs share a home, so that the worker's GPU measures its policy once for each length."""

    scratch: Path
    length: int
    steps: int
    gpus: int

    def speed(self, rows: int) -> dict[str, object]:
        """`rows` rows at once on each GPU, one portion an update: so many GPUs, so many times the rows."""
        one, all_ = (self._measured(rows, n) for n in (1, self.gpus))
        return {
            "tokens_at_once_on_a_gpu": rows * self.length,
            "one": one,
            "all": all_,
            "times_as_fast": round(all_["tokens_per_second"] / one["tokens_per_second"], 4),  # type: ignore[operator]
        }

    def _measured(self, rows: int, gpus: int) -> dict[str, object]:
        run = self._run(f"{rows} rows, {gpus} GPUs", gpus, rows, 1, self.steps)
        used = _follow_to_its_end(run)
        metrics = _metrics(run)
        late = metrics[len(metrics) // 2 :]
        return {
            "place": run.plan().device_label,
            "notes": [e.text for e in events_of(run) if e.kind == "note"],
            "tokens_per_second": round(
                statistics.median(e.values["tokens_per_second"] for e in late)
            ),
            "step_seconds": round(
                statistics.median(b.time - a.time for a, b in itertools.pairwise(late)), 4
            ),
            "seconds_to_first_step": round(metrics[0].time - events_of(run)[0].time, 1),
            "worker_peak_gib": round(metrics[-1].values["peak_gib"], 2),
            "most_used_gib_by_gpu": used,
            "policies": {
                f.name: json.loads(f.read_text()) for f in self.scratch.glob("policies*.json")
            },
            "losses": losses_of(events_of(run)),
        }

    def same_updates(self) -> dict[str, object]:
        """The same rows an update: in portions on one GPU, at once on all; and one GPU again, for the noise."""
        runs = [
            self._run(f"same {i}", n, 2, 2 * self.gpus // n, _SAME_STEPS)
            for i, n in enumerate((1, self.gpus, 1))
        ]
        for run in runs:
            _follow_to_its_end(run)
        one, all_, again = (losses_of(events_of(run)) for run in runs)
        return {
            "one": one,
            "all": all_,
            "largest_relative_difference": largest_difference(one, all_),
            "of_one_and_itself_again": largest_difference(one, again),
        }

    def lost_process(self) -> dict[str, object]:
        """Another process is killed after some steps: how the run ends, and how soon."""
        run = self._run("lost", self.gpus, 1, 1, 100_000)
        worker = start_worker(run)
        while len(_metrics(run)) < 5:
            if worker.poll() is not None:
                raise RuntimeError(f"it ended: {events_of(run)[-1]}")
            time.sleep(0.05)
        others = [p for p in psutil.Process(worker.pid).children() if "train" in p.cmdline()]
        others[0].send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        try:
            worker.wait(timeout=60)
        finally:
            worker.kill()
        return {
            "seconds_to_the_end": round(time.monotonic() - killed_at, 2),
            "exit_status": worker.wait(),
            "ends_with": events_of(run)[-1].model_dump(exclude={"seq", "time"}),
            "others_left": sum(psutil.pid_exists(p.pid) for p in others),
        }

    def _run(self, name: str, gpus: int, rows: int, portions: int, steps: int) -> RunFolder:
        wanted = {
            "max_length": self.length, "per_device_train_batch_size": rows, "name": name,
            "gradient_accumulation_steps": portions, "num_processes": gpus, "max_steps": steps,
            "optim": "adamw_torch", "save_seconds": 1e6,
        }  # fmt: skip
        on_gpu = read_hardware(self.scratch).device == "cuda"
        # resolve() shares no CPU; processes of one take the same way.
        forced = {} if on_gpu else {"step_kind": "fast", "num_processes": gpus}
        run = new_run(self.scratch, self.scratch / "rows.jsonl", wanted, **forced)
        if run.plan().num_processes != gpus:
            raise RuntimeError(f"planned for {run.plan().num_processes} GPUs")
        return run


def _metrics(run: RunFolder) -> list[Metric]:
    return [e for e in events_of(run) if isinstance(e, Metric) and "loss" in e.values]


def _follow_to_its_end(run: RunFolder) -> list[float]:
    """Most GiB used on each GPU, by whomever. Raises RuntimeError unless the run finishes."""
    worker, most, deadline = start_worker(run), [], time.monotonic() + _LONGEST_SECONDS
    while worker.poll() is None and time.monotonic() < deadline:
        used = _used_gib()
        most = [max(pair) for pair in zip(most or used, used, strict=True)]
        time.sleep(0.25)
    worker.kill()
    worker.wait()
    last = events_of(run)[-1]
    if last.kind != "finished":
        raise RuntimeError(f"{last}; {run.log_file.read_text()[-1200:]}")
    return most


def _used_gib() -> list[float]:
    try:
        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        memories = [pynvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
    except pynvml.NVMLError:
        return []
    return [round(float(memory.used) / _GIB, 2) for memory in memories]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
