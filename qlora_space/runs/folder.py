"""The run folder, which holds everything about a run. Ids are random, never user text.

Written once: request.json, plan.json, owner, origin. By the worker: events.jsonl, worker.log, data/, start/,
checkpoints/, adapter/, report.json, and pause for its slice on ZeroGPU. At a user's request: name, and the control
requests stop, discard, save, sample. By who publishes: publications.jsonl, proofs.jsonl, unsent_push.json, push.lock
(pushing.py). By who shares: share_key (sharing.py). By who starts and follows a job: job.json (job.py). By who
compares: comparisons/, votes.jsonl. By who exports: exports/.
"""

import functools
import itertools
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_space.core.atomic import whole_folder, write_atomically
from qlora_space.core.comparison import Question
from qlora_space.core.errors import RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Home
from qlora_space.core.visitor import LOCAL
from qlora_space.core.wording import plain_name
from qlora_space.plan import Plan
from qlora_space.runs.heldout import heldout_question
from qlora_space.runs.job import JobRecord, read_job, write_job
from qlora_space.runs.publication import Publication, UnsentPush
from qlora_space.runs.report import Report

ControlRequest = Literal["save", "sample"]
_STEP = re.compile(r"step-(\d+)")
_NAME_CHARS = 80
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_RUN_ID = re.compile(r"[0-9a-f]{32}")  # 128 random bits: an id cannot be guessed


@dataclass(frozen=True)
class RunFolder:
    """Paths and typed contents of one run."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def home(self) -> Home:
        """What all runs of an installation share."""
        return Home.of_runs(self.path.parent)

    @property
    def owner(self) -> str:
        """Subject of the visitor whose run it is (core/visitor.py)."""
        return _owner_of(self.path)

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "worker.log"

    @property
    def stop_file(self) -> Path:
        return self.path / "stop"

    @property
    def discard_file(self) -> Path:
        return self.path / "discard"

    @property
    def pause_file(self) -> Path:
        return self.path / "pause"

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    def job(self) -> JobRecord | None:
        """The job in which it is, or was last; None if it never was in one."""
        return read_job(self.job_file)

    def keep_job(self, job: JobRecord) -> None:
        """Raises DiskFull."""
        write_job(self.job_file, job)

    @property
    def is_in_job(self) -> bool:
        """Whether it is in one now, waits for one, or its results are on their way here."""
        job = self.job()
        return job is not None and not job.is_over

    @property
    def data_folder(self) -> Path:
        return self.path / "data"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_folder(self, step: int) -> Path:
        return self.checkpoints_folder / f"step-{step:06d}"

    @property
    def adapter_folder(self) -> Path:
        return self.path / "adapter"

    @property
    def start_folder(self) -> Path:
        """The adapter before the first step, where it repairs a low-bit base or training goes on from another."""
        return self.path / "start"

    @property
    def quantized_folder(self) -> Path:
        """Packed bases of all runs."""
        return self.home.quantized_folder

    @property
    def packed_base_file(self) -> Path:
        return self.start_folder / "packed_base"

    @property
    def packed_folder(self) -> Path:
        """The packed base of this run; `packed_base` beside the adapter init has its name."""
        file = self.packed_base_file
        name = file.read_text() if file.is_file() else "unknown"
        return self.quantized_folder / Path(name).name

    def check_base(self) -> None:
        """Raises RunError if the packed base is gone and cannot be packed again."""
        if self.plan().base_is_own and not self.has_packed_base:
            raise RunError(
                "The packed base of this run is gone, and no recipe packs it again: it was rounded with the "
                "calibration text in view.",
                "Train again.",
            )

    @property
    def has_packed_base(self) -> bool:
        return (self.packed_folder / "config.json").is_file()

    @property
    def report_file(self) -> Path:
        return self.path / "report.json"

    @property
    def has_adapter(self) -> bool:
        return (self.adapter_folder / "adapter_model.safetensors").is_file()

    def request(self) -> TrainingRequest:
        return TrainingRequest.model_validate_json((self.path / "request.json").read_bytes())

    def plan(self) -> Plan:
        return Plan.model_validate_json((self.path / "plan.json").read_bytes())

    def move(self, request: TrainingRequest, plan: Plan) -> None:
        """It goes on in another place: what was asked for and planned is written anew. Raises DiskFull."""
        file = self.path / "request.json"
        created = file.stat()
        write_atomically(self.path / "plan.json", plan.model_dump_json(indent=1))
        write_atomically(file, request.model_dump_json(indent=1))
        os.utime(file, ns=(created.st_atime_ns, created.st_mtime_ns))  # runs are ordered by it

    def name(self) -> str:
        """The user's name for it, else the plan's; in a mirror these may be somebody else's words. A damaged run has
        one, too."""
        file = self.path / "name"
        try:
            written = file.read_text() if file.is_file() else _planned_name(self.path)
            return plain_name(written)[:_NAME_CHARS] or f"Run {self.id[:8]}"
        except ValueError:
            return f"Damaged run {self.id[:8]}"

    def rename(self, name: str) -> None:
        """Raises RunError, DiskFull."""
        name = plain_name(name)[:_NAME_CHARS]
        if not name:
            raise RunError("The name is empty.", "Write one.")
        write_atomically(self.path / "name", name)

    def origin(self) -> "RunFolder | None":
        """The run that this one was made from; None if there is none, or it was deleted."""
        file = self.path / "origin"
        try:
            return (
                find_run(self.path.parent, file.read_text(), self.owner) if file.is_file() else None
            )
        except RunError:
            return None

    def resume_step(self) -> int | None:
        """Step of the newest checkpoint, by its name alone; the worker checks every byte. None without one."""
        found = (
            _STEP.fullmatch(p.parent.name) for p in self.checkpoints_folder.glob("*/state.json")
        )
        return max((int(match[1]) for match in found if match), default=None)

    def report(self) -> Report | None:
        """Scores of base and trained model; None while the run is not done."""
        if not self.report_file.is_file():
            return None
        return Report.model_validate_json(self.report_file.read_bytes())

    @property
    def delete_at_file(self) -> Path:
        return self.path / "delete_at"

    def delete_at(self) -> float | None:
        """Unix time at which a Space deletes this run, once its owner was warned; None if it is not due."""
        file = self.delete_at_file
        return float(file.read_text()) if file.is_file() and not self.publications() else None

    @property
    def comparisons_folder(self) -> Path:
        """comparisons.py"""
        return self.path / "comparisons"

    @property
    def votes_file(self) -> Path:
        """votes.py"""
        return self.path / "votes.jsonl"

    @property
    def exports_folder(self) -> Path:
        """A folder for each format that the run was exported to."""
        return self.path / "exports"

    @property
    def publications_file(self) -> Path:
        return self.path / "publications.jsonl"

    def publications(self) -> list[Publication]:
        """Where the adapter was published, oldest first."""
        return [each for each in self.all_publications() if each.what == "adapter"]

    def all_publications(self) -> list[Publication]:
        """Of exports and demo Spaces too."""
        if not self.publications_file.is_file():
            return []
        lines = (
            self.publications_file.read_bytes().splitlines()
        )  # text has more line ends than JSON
        return [Publication.model_validate_json(line) for line in lines]

    def add_publication(self, publication: Publication) -> None:
        """A commit stands there once. Raises DiskFull."""
        of_push = (publication.repo, publication.commit)
        before = [p for p in self.all_publications() if (p.repo, p.commit) != of_push]
        lines = [each.model_dump_json() for each in (*before, publication)]
        write_atomically(self.publications_file, "\n".join(lines) + "\n")

    @property
    def push_lock(self) -> Path:
        return self.path / "push.lock"

    @property
    def unsent_push_file(self) -> Path:
        return self.path / "unsent_push.json"

    def unsent_push(self) -> UnsentPush | None:
        """The push that was begun and is not done; None without one, or if the file is damaged."""
        try:
            return UnsentPush.model_validate_json(self.unsent_push_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def keep_unsent_push(self, push: UnsentPush) -> None:
        """Raises DiskFull."""
        write_atomically(self.unsent_push_file, push.model_dump_json(indent=1))

    def forget_unsent_push(self) -> None:
        self.unsent_push_file.unlink(missing_ok=True)

    def ask_to_stop(self, keep: bool) -> None:
        """Request a stop, which the worker checks for between two steps. The file is empty: a full disk takes it."""
        write_atomically(self.stop_file if keep else self.discard_file, "")

    def ask_to_pause(self) -> None:
        """Save everything and leave the GPU; what trains in slices checks for it before each forward pass."""
        write_atomically(self.pause_file, "")

    def ask_for(self, control_request: ControlRequest) -> None:
        """Request a checkpoint or sample answers after the current step."""
        write_atomically(self.path / control_request, "")

    def clear_control_requests(self) -> None:
        """Control requests hold for one attempt only."""
        for name in ("stop", "discard", "save", "sample", "pause"):
            (self.path / name).unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete checkpoints, adapter and report; the events stay."""
        self.report_file.unlink(missing_ok=True)
        for folder in (self.checkpoints_folder, self.adapter_folder):
            shutil.rmtree(folder, ignore_errors=True)

    def stop_request(self) -> str | None:
        """'keep' or 'discard' if a stop was requested, else None; 'discard' wins."""
        if self.discard_file.exists():
            return "discard"
        return "keep" if self.stop_file.exists() else None

    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer in the training data; empty before the data is prepared."""
        manifest = self.data_folder / "manifest.json"
        return (
            tuple(json.loads(manifest.read_bytes())["stop_token_ids"]) if manifest.is_file() else ()
        )

    def heldout_questions(self, count: int) -> list[Question]:
        """The first `count` rows that are not trained on; none before the data is prepared."""
        file = self.data_folder / "eval_examples.jsonl"
        if not file.is_file():
            return []
        with file.open(encoding="utf-8") as lines:
            return [heldout_question(line) for line in itertools.islice(lines, count)]

    def checkpoint_steps(self) -> list[int]:
        """Of the checkpoints that are kept, oldest first."""
        matches = (_STEP.fullmatch(p.name) for p in self.checkpoints_folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def adapter_after(self, step: int | None) -> Path:
        """The checkpoint of that step; None: the finished adapter, else the last checkpoint. Raises RunError."""
        if step is None and self.has_adapter:
            return self.adapter_folder
        steps = self.checkpoint_steps()
        if not steps and step is None:
            raise RunError("This run has no adapter yet.", "Wait for its first checkpoint.")
        if step is not None and step not in steps:
            kept = ", ".join(map(str, steps)) or "none"
            raise RunError(
                f"step is {step}: the run keeps no checkpoint of it.", f"Kept are: {kept}."
            )
        return self.checkpoint_folder(steps[-1] if step is None else step)


@functools.lru_cache(maxsize=4096)
def _planned_name(path: Path) -> str:
    """A plan is written once, and is long: lists of runs ask for the name of each."""
    return RunFolder(path).plan().name


def create_run(
    runs_folder: Path,
    request: TrainingRequest,
    plan: Plan,
    *,
    owner: str = LOCAL,
    origin: str = "",
    start: Path | None = None,
) -> RunFolder:
    """Create the folder, whole or not at all. Raises DiskFull.

    origin: id of the run that it is made from. start: folder of the adapter that training goes on from, of which the
    run gets a copy.
    """
    folder = runs_folder / secrets.token_hex(16)
    with whole_folder(folder, "The run folder") as part:
        request_file, now = part / "request.json", time.time_ns()
        write_atomically(request_file, request.model_dump_json(indent=1))
        # Runs are ordered by it; the kernel's own times are the same for some milliseconds.
        os.utime(request_file, ns=(now, now))
        write_atomically(part / "plan.json", plan.model_dump_json(indent=1))
        (part / "events.jsonl").touch()
        set_owner(part, owner)
        if origin:
            (part / "origin").write_text(origin)
        if start:
            (part / "start").mkdir()
            shutil.copyfile(start / _ADAPTER_WEIGHTS, part / "start" / _ADAPTER_WEIGHTS)
    return RunFolder(folder)


def find_run(runs_folder: Path, run_id: str, owner: str = LOCAL) -> RunFolder:
    """The owner's run with this id, which may be user text. Raises RunError.

    The owner's ids are listed and the asked one is looked for among them: one of somebody else takes as long as one
    that nobody has.
    """
    if run_id not in owned_ids(runs_folder, owner):
        raise unknown_run(run_id)
    return RunFolder(runs_folder / run_id)


def unknown_run(run_id: str) -> RunError:
    """The same words for whatever is not there, and for what is not the visitor's."""
    return RunError(
        f"There is no run {run_id[:40]!r} on this machine.", "Choose one from the list of runs."
    )


def owned_ids(runs_folder: Path, owner: str) -> set[str]:
    """Ids of the owner's runs."""
    if not runs_folder.is_dir():
        return set()
    return {p.name for p in runs_folder.iterdir() if _is_run(p) and _owner_of(p) == owner}


def is_run_id(written: str) -> bool:
    """Whether it has the form of one."""
    return bool(_RUN_ID.fullmatch(written))


def _is_run(path: Path) -> bool:
    return is_run_id(path.name) and (path / "plan.json").is_file()


def set_owner(folder: Path, owner: str) -> None:
    """Of a run folder that has not got its name yet."""
    (folder / "owner").write_text(owner)
    _owner_of.cache_clear()  # a run of this id may have been deleted


@functools.lru_cache(maxsize=4096)
def _owner_of(path: Path) -> str:
    """It is written before the folder has its name, and never changes. Runs without one are this machine's user's."""
    file = path / "owner"
    return file.read_text() if file.is_file() else LOCAL


def list_runs(runs_folder: Path) -> list[RunFolder]:
    """All runs, newest first."""
    if not runs_folder.is_dir():
        return []
    runs = [RunFolder(p) for p in runs_folder.iterdir() if _RUN_ID.fullmatch(p.name)]
    return sorted(runs, key=lambda run: _created_at(run), reverse=True)


def _created_at(run: RunFolder) -> float:
    try:
        return (run.path / "request.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def delete_run(run: RunFolder) -> None:
    """Remove the folder. It is renamed first, so that it leaves the list at once."""
    deleted = run.path.with_name(f".deleted-{run.id}")
    run.path.rename(deleted)
    shutil.rmtree(deleted, ignore_errors=True)
