"""Break one promise after the other in a copy of the code and see its test fail.

    python benchmarks/mutants.py [--only WORD] [--jobs N]

Prints a JSON line for each mutant; exits 1 if a test did not notice one, or failed without any.
"""

import argparse
import json
import multiprocessing.pool
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """`old` is in `file` exactly once; with `new` in its place `test` must fail."""

    promise: str
    file: str
    old: str
    new: str
    test: str


_TRAIN, _ATOMIC = "qlora_space/train/", "qlora_space/core/atomic.py"
_SNAPSHOT, _RESUME, _LOOP = (
    f"tests/train/test_{name}.py" for name in ("snapshot", "resume", "loop")
)
_EVALUATE = "tests/train/test_evaluate.py"
_PAUSE = f"{_RESUME}::test_a_run_that_is_interrupted_inside_a_step_or_an_evaluation_goes_on_exactly"
_NAN = f"{_LOOP}::test_numbers_that_are_not_finite_roll_back_once_and_training_goes_on"
_MIRROR, _COPY = "qlora_space/hub/mirror.py", "tests/hub/test_mirror.py"
MUTANTS = (
    Mutant("a checkpoint appears whole", _ATOMIC,
           '        yield part\n        for path in (*sorted(part.rglob("*")), part):\n            _sync(path)\n'
           "        _replace(folder, part)\n",
           "        _replace(folder, part)\n        yield folder\n"
           '        for path in (*sorted(folder.rglob("*")), folder):\n            _sync(path)\n',
           f"{_SNAPSHOT}::test_a_save_that_breaks_off_at_any_call_leaves_a_whole_newest_checkpoint"),
    Mutant("a folder stays until the one that replaces it is there", _ATOMIC,
           "            os.rename(folder, old)\n", "            shutil.rmtree(folder)\n",
           "tests/core/test_atomic.py::test_a_kill_at_any_call_leaves_the_old_folder_or_the_new_one"),
    Mutant("files are synced before they get their name", _ATOMIC,
           '        for path in (*sorted(part.rglob("*")), part):\n            _sync(path)\n', "",
           f"{_SNAPSHOT}::test_everything_is_synced_before_the_name_appears"),
    Mutant("the parent is synced after the rename", _ATOMIC,
           "        _sync(folder.parent)\n", "",
           f"{_SNAPSHOT}::test_everything_is_synced_before_the_name_appears"),
    Mutant("a flipped bit is noticed", _TRAIN + "checkpoint.py",
           'if hashlib.sha256(content).hexdigest() != entry["sha256"]:', "if False:",
           f"{_SNAPSHOT}::test_a_flipped_bit_anywhere_is_found_or_changes_nothing"),
    Mutant("a damaged newest is skipped, not fatal", _TRAIN + "checkpoint.py",
           '            skipped.append(f"{folder.name}: {error.what}")', "            raise",
           f"{_SNAPSHOT}::test_a_damaged_newest_checkpoint_is_skipped_with_its_reason"),
    Mutant("weights that are not finite are no checkpoint", _TRAIN + "checkpoint.py",
           "if not snapshot.has_only_finite_weights():", "if False:",
           f"{_SNAPSHOT}::test_weights_that_are_not_finite_are_never_a_checkpoint"),
    Mutant("a past that was left is forgotten", _TRAIN + "checkpoint.py",
           "        if _step_of(later) > step:", "        if False:",
           f"{_SNAPSHOT}::test_later_steps_than_the_one_that_is_saved_are_of_a_past_that_was_left"),
    Mutant("the base is measured without the adapter", _TRAIN + "evaluate.py",
           "            with self._state.model.disable_adapter():\n                losses = self.losses(rows)",
           "            if True:\n                losses = self.losses(rows)",
           f"{_EVALUATE}::test_the_base_is_measured_without_the_adapter"),
    Mutant("an adapter that training goes on from is not the base", _TRAIN + "evaluate.py",
           "        return not any(bool(weight.any())", "        return True or any(bool(weight.any())",
           f"{_EVALUATE}::test_the_first_evaluation_is_the_bases_only_where_the_adapter_is_new"),
    Mutant("an evaluation that was undone is no result", _TRAIN + "evaluate.py",
           "        return losses if has_stayed else None", "        return losses",
           f"{_EVALUATE}::test_losses_of_an_evaluation_that_a_rollback_has_undone_are_not_the_reports"),
    Mutant("answers of the base are known by their prompt and length", _TRAIN + "base_results.py",
           'return _hash(["answer", list(prompt), limit, sorted(stop_token_ids)])', 'return _hash(["answer", limit])',
           f"{_EVALUATE}::test_a_second_run_asks_the_base_for_nothing"),
    Mutant("evaluation ends with its share of the time", _TRAIN + "evaluate.py",
           "        fitting = first + max(0,", "        fitting = count + max(0,",
           f"{_EVALUATE}::test_fewer_answers_where_they_take_longer_than_their_share"),
    Mutant("a score of which few rows change has a wide enough interval", "qlora_space/core/intervals.py",
           "np.array([*changes, 1.0, -1.0])", "np.array(changes)", "tests/core/test_intervals.py"),
    Mutant("the optimizer comes back", _TRAIN + "snapshot.py",
           "    _restore_optimizer(state, snapshot)\n", "", _PAUSE),
    Mutant("8-bit states come back", _TRAIN + "snapshot.py",
           "    _copy_into(here, snapshot.optimizer)\n", "",
           f"{_SNAPSHOT}::test_going_on_from_disk_in_a_fresh_optimizer_is_bit_identical"),
    Mutant("the generators come back", _TRAIN + "snapshot.py",
           '    Rng(snapshot.rng, snapshot.scalars["rng"]).set()\n', "", _PAUSE),
    Mutant("a broken off step begins as it began", _TRAIN + "snapshot.py",
           "rng = state.step_rng or Rng.now()", "rng = Rng.now()", _PAUSE),
    Mutant("a step is reported before a signal interrupts", _TRAIN + "loop.py",
           "            self.context.interruption.is_postponed = True\n", "",
           f"{_RESUME}::test_slices_of_a_few_forward_passes_are_one_run"),
    Mutant("the scheduler comes back", _TRAIN + "snapshot.py",
           'state.lr_scheduler.state_dict() | snapshot.scalars["scheduler"]', "state.lr_scheduler.state_dict()",
           _PAUSE),
    Mutant("the place in the data comes back", _TRAIN + "batches.py",
           "self._read(first_step, rows_at_once)", "self._read(0, rows_at_once)", _PAUSE),
    Mutant("a signal is saved at once", _TRAIN + "recovery.py",
           "            self._save_before_leaving()\n", "", _PAUSE),
    Mutant("trying the longest rows leaves no trace", _TRAIN + "recovery.py",
           "        restore(self._state, self._good)\n",
           "        if self._state.progress.step:\n            restore(self._state, self._good)\n",
           f"{_RESUME}::test_trying_the_longest_rows_leaves_no_trace"),
    Mutant("kills are survived", _TRAIN + "snapshot.py",
           "    _restore_optimizer(state, snapshot)\n", "",
           f"{_RESUME}::test_workers_that_are_killed_anywhere_are_resumed_exactly"),
    Mutant("NaN trips the guard", _TRAIN + "guards.py",
           "    if not math.isfinite(grad_norm):", "    if False:", _NAN),
    Mutant("a rollback halves the learning rate", _TRAIN + "recovery.py",
           "            halve_learning_rate(self._state)\n", "            pass\n", _NAN),
    Mutant("a rollback is on disk before the next step", _TRAIN + "recovery.py",
           "            self._went_back = False\n            self.save()\n", "            self._went_back = False\n",
           f"{_LOOP}::test_a_rollback_is_on_disk_before_the_next_step"),
    Mutant("at most two rollbacks", _TRAIN + "guards.py", "MAX_ROLLBACKS = 2", "MAX_ROLLBACKS = 3",
           f"{_LOOP}::test_a_fault_that_stays_ends_with_the_rate_and_leaves_only_sound_checkpoints"),
    Mutant("smaller micro-batches, as many rows per step", _TRAIN + "batches.py",
           "math.ceil(rows_per_step(plan) / rows_at_once)", "plan.gradient_accumulation_steps",
           f"{_LOOP}::test_out_of_memory_makes_micro_batches_smaller_and_keeps_the_rows_of_a_step"),
    Mutant("the best adapter is the one that is kept", _TRAIN + "run.py",
           "        restore_adapter(self.state.model, snapshot.adapter)\n        loss =", "        loss =",
           f"{_LOOP}::test_early_stopping_says_why_and_the_best_adapter_is_the_one_that_is_kept"),
    Mutant("checkpoints cost at most a hundredth of the time", _TRAIN + "checkpointing.py",
           "max(self._context.plan.save_seconds, cost / _LARGEST_COST)", "self._context.plan.save_seconds",
           f"{_LOOP}::test_checkpoints_by_time_take_at_most_a_hundredth_of_it"),
    Mutant("a full disk is told about", "qlora_space/runs/log.py",
           "os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)", "pass",
           "tests/train/test_disk.py::test_the_last_bytes_are_for_telling_that_the_disk_is_full"),
    Mutant("a checkpoint that does not fit stops nothing", _TRAIN + "checkpointing.py",
           "            if self._saved_step < 0:\n                raise", "            raise",
           "tests/train/test_disk.py::test_checkpoints_that_do_not_fit_are_told_and_written_again_when_there_is_room"),
    Mutant("a copy on the Hub is private", _MIRROR, "    if not info.private:", "    if False:",
           f"{_COPY}::test_a_public_repository_or_one_with_other_files_is_refused"),
    Mutant("a copy overwrites no other files", _MIRROR, "    if others and not is_own:", "    if False:",
           f"{_COPY}::test_a_public_repository_or_one_with_other_files_is_refused"),
    Mutant("a changed file of a copy is refused", _MIRROR, "_hash(folder / path) != file", "False",
           f"{_COPY}::test_a_changed_file_is_refused_and_nothing_is_left"),
    Mutant("a copy names no path outside its run", _MIRROR,
           "not all(_COPIED_PATH.fullmatch(path) for path in manifest.files)", "False",
           f"{_COPY}::test_a_manifest_cannot_name_a_path_outside_the_run"),
    Mutant("old checkpoints leave a copy", _MIRROR,
           "        *(CommitOperationDelete(path) for path in sorted(gone)),\n", "",
           f"{_COPY}::test_a_copy_is_one_commit_with_the_newest_and_the_best_checkpoint"),
    Mutant("the best checkpoint is in a copy", _MIRROR, "best not in (None, newest)", "False",
           f"{_COPY}::test_a_copy_is_one_commit_with_the_newest_and_the_best_checkpoint"),
    Mutant("a copy is tried again", _MIRROR,
           "wait = self._cadence_seconds if self._copy(step) else self._retry_seconds",
           "self._copy(step)\n                return",
           f"{_COPY}::test_a_dead_network_is_reported_once_and_the_copy_is_made_when_it_is_back"),
    Mutant("the last copy has how it ended", _MIRROR, "        self._copy(self._run.resume_step())\n", "",
           f"{_COPY}::test_a_dead_network_is_reported_once_and_the_copy_is_made_when_it_is_back"),
)  # fmt: skip


def fails(mutant: Mutant) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__", "docs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        file = copy / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return {"promise": mutant.promise, "caught": False, "error": "the code has changed"}
        file.write_text(text.replace(mutant.old, mutant.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=900",
            mutant.test,
        ]
        path = os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED"))]
    caught = done.returncode == 1 and any(
        "FAILED" in line or line.startswith("E  ") for line in lines
    )
    return {"promise": mutant.promise, "caught": caught, "test": mutant.test, "seen": lines[:1]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="promises with this word")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in m.promise]
    results = []
    with multiprocessing.pool.ThreadPool(options.jobs) as pool:
        for result in pool.imap_unordered(fails, chosen):
            results.append(result)
            print(json.dumps(result), flush=True)
    missed = [r["promise"] for r in results if not r["caught"]]
    print(
        json.dumps(
            {"mutants": len(results), "caught": len(results) - len(missed), "missed": missed}
        )
    )
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
