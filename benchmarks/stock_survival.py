"""The same faults for trl's SFTTrainer as it comes, with its own checkpoints, and for a run of ours, side by side.

    python benchmarks/stock_survival.py --kills 20 --flips 20 --jobs 14

Both train the same tiny NF4 base with the same rank, dropout, rate and number of rows, and save every second
step. Ends: `exact` (every loss and the final adapter as in the unbroken run), `refused` (resuming ended with
an error), `other` (it resumed and ended without an error, but not with those numbers), `nan` (it finished
with an adapter that is not finite), `recovered` (it finished, finite, with a lower rate). Prints a JSON line
for each trial and a table. The full disk needs root, for a tmpfs.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from qlora_space.data import open_source
from qlora_space.model import load_base
from qlora_space.places import worker
from qlora_space.runs import RunFolder
from tests.train.small import STEPS, events_of, small_plan, small_run, tiny_base

_SAVE_STEPS = 2
_ROWS = 40


class Stock:
    """A script as the library's documentation has it, with resume_from_checkpoint=True when there is one."""

    name = "trl SFTTrainer"
    files = {"state": "trainer_state.json", "weights": "adapter_model.safetensors", "optimizer": "optimizer.pt",
             "scheduler": "scheduler.pt", "rng": "rng_state.pth"}  # fmt: skip
    calls_before_training = 0

    def prepare(self, home: Path) -> None:
        (home / "out").mkdir(parents=True, exist_ok=True)

    def work(self, home: Path) -> int:
        class Tell(TrainerCallback):
            def on_log(
                self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
            ) -> None:
                if logs and "loss" in logs:
                    with (home / "losses.jsonl").open("a") as file:
                        file.write(json.dumps([state.global_step, float(logs["loss"])]) + "\n")

        plan = small_plan()
        tokenizer = AutoTokenizer.from_pretrained(tiny_base())
        rows = [json.loads(line) for line, _ in zip(_demo_lines(), range(_ROWS), strict=False)]
        trainer = SFTTrainer(
            model=load_base(tiny_base(), 4, "cpu"),
            args=SFTConfig(
                output_dir=str(home / "out"), max_steps=STEPS, per_device_train_batch_size=1,
                gradient_accumulation_steps=2, learning_rate=plan.learning_rate, seed=plan.seed,
                use_cpu=True, bf16=True, logging_steps=1, save_steps=_SAVE_STEPS, report_to="none",
                disable_tqdm=True, max_length=128, gradient_checkpointing=False, logging_nan_inf_filter=False,
            ),
            train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows]),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=plan.r, lora_alpha=plan.lora_alpha, lora_dropout=0.1,
                                   target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[Tell()],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=bool(self.checkpoints(home)))
        trainer.save_model(str(home / "final"))
        return 0

    def checkpoints(self, home: Path) -> list[Path]:
        found = (home / "out").glob("checkpoint-*")
        return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))

    def losses(self, home: Path) -> list[list[float]]:
        file = home / "losses.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def adapter(self, home: Path) -> Path:
        return home / "final/adapter_model.safetensors"


class Ours:
    """The worker, started again."""

    name = "this project"
    files = {"state": "state.json", "weights": "adapter_model.safetensors", "optimizer": "optimizer.safetensors",
             "scheduler": "scalars.json", "rng": "rng.safetensors"}  # fmt: skip
    calls_before_training = 1  # the rehearsal

    def prepare(self, home: Path) -> None:
        small_run(home, small_plan(save_steps=_SAVE_STEPS))

    def work(self, home: Path) -> int:
        status = worker.main(["train", str(self._run(home).path)])
        return 1 if status == 75 else status  # paused

    def checkpoints(self, home: Path) -> list[Path]:
        return sorted(self._run(home).checkpoints_folder.glob("step-*"))

    def losses(self, home: Path) -> list[list[float]]:
        events = events_of(self._run(home))
        return [
            [e.step, e.values["loss"]] for e in events if e.kind == "metric" and "loss" in e.values
        ]

    def adapter(self, home: Path) -> Path:
        return self._run(home).adapter_folder / "adapter_model.safetensors"

    def _run(self, home: Path) -> RunFolder:
        return RunFolder(next(p for p in (home / "runs").iterdir() if not p.name.startswith(".")))


System = Stock | Ours
SYSTEMS: dict[str, System] = {"stock": Stock(), "ours": Ours()}


def _demo_lines() -> list[str]:
    from qlora_space.core.demo import TRAIN_FILE

    return TRAIN_FILE.read_text("utf-8").splitlines()


# Attempts


def start(system: System, home: Path, before: Callable[[], None] = lambda: None) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.dup2(os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        before()
        status = system.work(home)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    finally:
        os._exit(status)


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def numbers(system: System, home: Path) -> tuple[dict[int, float], str]:
    """The last loss of each step, and a hash of the final adapter."""
    weights = load_file(system.adapter(home))
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return {int(step): loss for step, loss in system.losses(home)}, digest.hexdigest()


def resumed(system: System, home: Path, wanted: Any) -> str:
    if end_of(start(system, home)):
        return "refused"
    told: dict[float, float] = {}
    for step, loss in system.losses(home):
        if told.setdefault(step, loss) != loss:
            return "other"
    return "exact" if numbers(system, home) == wanted else "other"


def until(true: Callable[[], bool], child: int) -> bool:
    """False if the child ended first."""
    while not true():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    return True


def until_step(system: System, home: Path, step: int, child: int) -> bool:
    return until(lambda: any(s >= step for s, _ in system.losses(home)), child)


def until_save(system: System, home: Path, count: int, child: int) -> bool:
    return until(lambda: len(system.checkpoints(home)) > count, child)


# Faults


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path, dict[str, str]], object]] = {
    "empty folder": lambda folder, names: [p.unlink() for p in folder.iterdir()],
    "state missing": lambda folder, names: (folder / names["state"]).unlink(),
    "state empty": lambda folder, names: (folder / names["state"]).write_text(""),
    "weights cut": lambda folder, names: os.truncate(folder / names["weights"], 1000),
    "weights missing": lambda folder, names: (folder / names["weights"]).unlink(),
    "optimizer missing": lambda folder, names: (folder / names["optimizer"]).unlink(),
    "scheduler missing": lambda folder, names: (folder / names["scheduler"]).unlink(),
    "generators missing": lambda folder, names: (folder / names["rng"]).unlink(),
    "a weight's bit flipped": lambda folder, names: _flip(folder / names["weights"], -1),
}


def damaged(system: System, home: Path, kind: str, seed: int, wanted: Any) -> str:
    newest = system.checkpoints(home)[-1]
    if kind in DAMAGE:
        DAMAGE[kind](newest, system.files)
    else:
        rng = random.Random(seed)
        file = newest / rng.choice(sorted(system.files.values()))
        _flip(file, rng.randrange(file.stat().st_size))
    return resumed(system, home, wanted)


def killed(system: System, home: Path, seed: int, wanted: Any) -> str:
    """Every second time when a checkpoint has just begun to appear."""
    rng = random.Random(seed)
    while True:
        shutil.rmtree(home, ignore_errors=True)
        system.prepare(home)
        child = start(system, home)
        reached = until_step(system, home, rng.randrange(1, STEPS), child)
        if reached and seed % 2:
            reached = until_save(system, home, len(system.checkpoints(home)), child)
        time.sleep(rng.uniform(0, 0.01 if seed % 2 else 0.3))
        os.kill(child, signal.SIGKILL)
        if end_of(child) == -signal.SIGKILL and reached:
            return resumed(system, home, wanted)


def terminated(system: System, home: Path, wanted: Any) -> str:
    """SIGTERM after step 3, a step after a save; also how many steps had to be done again."""
    system.prepare(home)
    child = start(system, home)
    until_step(system, home, 3, child)
    os.kill(child, signal.SIGTERM)
    end_of(child)
    told = len(system.losses(home))
    end = resumed(system, home, wanted)
    return f"{end}, {len(system.losses(home)) - STEPS if told else 0} steps again"


def not_a_number(system: System, home: Path, kind: str, wanted: Any) -> str:
    system.prepare(home)

    def put_in() -> None:
        compute, step = SFTTrainer.compute_loss, Trainer.training_step
        calls, at = iter(range(1000)), 5 + system.calls_before_training
        is_now = False

        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal is_now
            is_now = next(calls) == at
            loss = compute(self, *args, **kwargs)
            return loss * float("nan") if is_now and kind == "loss" else loss

        def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = step(self, model, *args, **kwargs)
            weight = next(p for n, p in model.named_parameters() if "lora_B" in n)
            if is_now and kind == "gradient":
                weight.grad[0, 0] = float("nan")
            if is_now and kind == "weight":
                weight.data[0, 0] = float("nan")
            return loss

        SFTTrainer.compute_loss, Trainer.training_step = compute_loss, training_step

    if end_of(start(system, home, put_in)):
        return "refused"
    weights = load_file(system.adapter(home)).values()
    return "recovered" if all(bool(torch.isfinite(w).all()) for w in weights) else "nan"


def disk_full(system: System, home: Path, wanted: Any) -> str:
    """Full after the checkpoint of step 2 until the attempt ends or two more steps are told; then there is room."""
    home.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(home)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        return "not run"
    try:
        system.prepare(home)
        child = start(system, home)
        until_step(system, home, 3, child)
        ballast = home / "ballast"
        with ballast.open("ab", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        went_on = until_step(system, home, 5, child)
        ballast.unlink()
        status = end_of(child)
        told = "went on" if went_on and not status else "ended with an error"
        end = (
            "exact"
            if not status and numbers(system, home) == wanted
            else resumed(system, home, wanted)
        )
        return f"{told}, then {end}"
    finally:
        subprocess.run(["umount", "-l", str(home)], check=False)


# All of them


def trial(task: tuple[str, str, str, int, Any, str]) -> dict[str, Any]:
    which, test, kind, seed, wanted, broken = task
    system = SYSTEMS[which]
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        match test:
            case "damage" | "flip":
                shutil.copytree(broken, home)
                end = damaged(system, home, kind, seed, wanted)
            case "kill":
                end = killed(system, home, seed, wanted)
            case "nothing":  # the control: both must repeat themselves
                system.prepare(home)
                end = resumed(system, home, wanted)
            case "SIGTERM":
                end = terminated(system, home, wanted)
            case "NaN":
                end = not_a_number(system, home, kind, wanted)
            case _:
                end = disk_full(system, home, wanted)
    return {"system": system.name, "test": test, "kind": kind, "seed": seed, "end": end}


def unbroken_and_broken(system: System, scratch: Path) -> tuple[Any, Path]:
    """What an unbroken run ends with, and a run that was killed at step 5 with checkpoints 2 and 4."""
    whole, broken = scratch / "whole", scratch / "broken"
    system.prepare(whole)
    if end_of(start(system, whole)):
        raise RuntimeError((whole / "log").read_text()[-2000:])
    while not broken.exists() or int(system.losses(broken)[-1][0]) == STEPS:
        shutil.rmtree(broken, ignore_errors=True)
        system.prepare(broken)
        child = start(system, broken)
        until_step(system, broken, 5, child)
        os.kill(child, signal.SIGKILL)
        end_of(child)
    return numbers(system, whole), broken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    open_source("demo"), tiny_base()
    with tempfile.TemporaryDirectory() as scratch:
        tasks = []
        for which, system in SYSTEMS.items():
            wanted, broken = unbroken_and_broken(system, Path(scratch) / which)
            wanted_and_broken = (wanted, str(broken))
            tasks += [(which, "damage", kind, 0, *wanted_and_broken) for kind in DAMAGE]
            tasks += [(which, "flip", "", i, *wanted_and_broken) for i in range(options.flips)]
            tasks += [(which, "kill", "", i, *wanted_and_broken) for i in range(options.kills)]
            tasks += [(which, test, "", 0, *wanted_and_broken) for test in ("nothing", "SIGTERM")]
            tasks += [
                (which, "NaN", k, 0, *wanted_and_broken) for k in ("loss", "gradient", "weight")
            ]
            tasks += [(which, "disk full", "", 0, *wanted_and_broken)]
        results = []
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for result in pool.imap_unordered(trial, tasks):
                results.append(result)
                print(json.dumps(result), flush=True)
    print(table(results))


def table(results: list[dict[str, Any]]) -> str:
    ends: dict[tuple[str, str], dict[str, collections.Counter]] = {}
    for r in results:
        row = ends.setdefault((r["test"], r["kind"]), collections.defaultdict(collections.Counter))
        row[r["system"]][r["end"]] += 1
    names = [system.name for system in SYSTEMS.values()]
    lines = [f"| fault | {' | '.join(names)} |", "|---|---|---|"]
    for (test, kind), row in sorted(ends.items()):
        cells = ("; ".join(f"{n} {end}" for end, n in row[name].most_common()) for name in names)
        lines.append(f"| {test}{': ' if kind else ''}{kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
