"""A copy of a run in a private Hub repository, so that a lost machine takes minutes of it and not the run.

One commit a copy: the newest and the best checkpoint, the adapter, the prepared rows, what was asked and what happened,
and mirror.json with the sha256 of each. What the copy before had and this one has not goes in the same commit.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.errors import HubError, QloraSpaceError, RunError
from qlora_space.hub.account import full_name_to_publish
from qlora_space.hub.connection import as_argument, hub_api, hub_error, is_repo_id, reading
from qlora_space.runs import RunFolder

CADENCE_SECONDS = 300.0  # the Hub counts commits
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 60.0
_LAST_SECONDS = 60.0
_RECORD = "mirror.json"
_OURS = re.compile(
    r"(request|plan|report)\.json|events\.jsonl|name|(data|adapter|checkpoints/step-\d{6,})/\w[\w.-]*"
)
_FILES = ("request.json", "plan.json", "report.json", "name")
_NOT_OURS = {".gitattributes", _RECORD}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Record(BaseModel):
    """What mirror.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    files: dict[str, _File] = Field(description="By path in the run folder.")


class Mirror:
    """Copies in a thread of its own. A slow or dead network means an older copy and a note, nothing else."""

    def __init__(
        self,
        run: RunFolder,
        repo: str,
        token: str | None,
        tell: Callable[[str, bool], object],
        cadence_seconds: float = CADENCE_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """`tell(sentence, is_trouble)` comes from that thread, once when copying fails and once when it works again."""
        self._run, self._repo, self._token, self._tell = run, repo, token, tell
        self._cadence_seconds, self._retry_seconds = cadence_seconds, retry_seconds
        self._copied_step: int | None = None
        self._is_failing = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self, seconds: float = _LAST_SECONDS) -> None:
        """One last copy, which has how the run ended; it is left behind when it takes longer."""
        self._ending.set()
        self._thread.join(seconds)

    def _work(self) -> None:
        wait = _LOOK_SECONDS
        while not self._ending.wait(wait):
            step = self._run.resume_step()
            wait = _LOOK_SECONDS
            if step is not None and step != self._copied_step:
                wait = self._cadence_seconds if self._copy(step) else self._retry_seconds
        self._copy(self._run.resume_step())

    def _copy(self, step: int | None) -> bool:
        try:
            push_copy(self._run, self._repo, self._token)
        except Exception as error:  # whatever it is, the training goes on
            if not self._is_failing and not self._ending.is_set():
                text = f"The copy on the Hub is not renewed: {_sentence(error)} "
                self._tell(text + "Training goes on, and it is tried again.", True)
            self._is_failing = True
            return False
        if self._is_failing and not self._ending.is_set():
            self._tell("The copy on the Hub is renewed again.", False)
        self._is_failing, self._copied_step = False, step
        return True


def check_can_mirror(repo: str, token: str | None) -> None:
    """Ask before training. Raises HubError if the repository could not take a copy of a new run."""
    api, name = hub_api(token), full_name_to_publish(repo, token)
    with reading(name, HubError):
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return
    _refuse(name, info, is_own=False)


def push_copy(run: RunFolder, repo: str, token: str | None) -> str:
    """One commit that makes the repository the copy of the run as it is now; returns its sha.

    Raises HubError if the repository is not private, holds anything else, or does not answer; OSError.
    """
    api, name = hub_api(token), full_name_to_publish(repo, token)
    with tempfile.TemporaryDirectory(prefix=".mirror-", dir=run.path) as scratch:
        stage = Path(scratch) / "run"
        record = _staged(run, stage)
        try:
            head, theirs = _ready(api, name, run.id)
            gone = theirs.names - record.files.keys() - _NOT_OURS
            new = [p for p, file in record.files.items() if theirs.files.get(p) != file]
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(path, stage / path) for path in new),
                CommitOperationAdd(_RECORD, record.model_dump_json(indent=1).encode()),
                *(CommitOperationDelete(path) for path in sorted(gone)),
            ]
            return api.create_commit(
                name, operations, commit_message=f"Copy of run {run.id[:8]}", parent_commit=head
            ).oid
        except QloraSpaceError:
            raise
        except Exception as error:  # the client wraps a failed upload in errors of many kinds
            raise hub_error(error, f"{name} did not take the copy") from None


def fetch_copy(repo: str, runs_folder: Path, token: str | None) -> RunFolder:
    """Bring a copied run into `runs_folder`, whole or not at all.

    Raises HubError if a file is not what was copied, RunError if that run is here already, DiskFull.
    """
    if not is_repo_id(repo):
        raise HubError(f"{repo[:100]!r} cannot be a repository.", "Write owner/name.")
    api = hub_api(token)
    with reading(repo, HubError):
        head = api.model_info(repo).sha or ""
        record = _record_at(api, repo, head)
        if record is None or not all(_OURS.fullmatch(path) for path in record.files):
            raise HubError(f"{repo} is no copy of a run.", "Give the name that it was copied to.")
        run = RunFolder(runs_folder / record.run_id)
        if run.path.exists():
            raise RunError("This run is on this machine already.", f"Resume it: {run.id}.")
        half_made = run.path.with_name(f".{run.id}.fetched")
        shutil.rmtree(half_made, ignore_errors=True)
        try:
            snapshot_download(
                repo, revision=head, allow_patterns=list(record.files), local_dir=half_made,
                token=as_argument(token),
            )  # fmt: skip
            shutil.rmtree(half_made / ".cache", ignore_errors=True)
            _check(repo, half_made, record)
            half_made.rename(run.path)
        finally:
            shutil.rmtree(half_made, ignore_errors=True)
    return run


def _check(repo: str, folder: Path, record: _Record) -> None:
    for path, file in record.files.items():
        if not (folder / path).is_file() or _hashed(folder / path) != file:
            raise HubError(f"{path} in {repo} is not what was copied.", "This copy is not used.")
    try:
        RunFolder(folder).request()
        RunFolder(folder).plan()
    except (OSError, ValidationError):
        raise HubError(
            f"{repo} was copied by another version.", "Fetch it with that version."
        ) from None


# What is copied


def _staged(run: RunFolder, stage: Path) -> _Record:
    """Hard links, so that the run may go on and forget its checkpoints. Raises OSError."""
    attempts = 3
    for attempt in range(1, attempts + 1):
        shutil.rmtree(stage, ignore_errors=True)
        try:
            for path in _paths(run):
                (stage / path).parent.mkdir(parents=True, exist_ok=True)
                _link(run.path / path, stage / path)
            break
        except FileNotFoundError:  # a checkpoint that was forgotten just now
            if attempt == attempts:
                raise
    events = run.events_file.read_bytes()
    (stage / "events.jsonl").write_bytes(events[: events.rfind(b"\n") + 1])
    files = sorted(p for p in stage.rglob("*") if p.is_file())
    hashed = {p.relative_to(stage).as_posix(): _hashed(p) for p in files}
    return _Record(run_id=run.id, files=hashed)


def _paths(run: RunFolder) -> list[str]:
    names = [n for n in _FILES if (run.path / n).is_file()]
    folders = [run.data_folder, run.adapter_folder]
    if (newest := run.resume_step()) is not None:
        folders.append(run.checkpoint_folder(newest))
        best = json.loads((folders[-1] / "state.json").read_bytes())["best_step"]
        if best not in (None, newest) and run.checkpoint_folder(best).is_dir():
            folders.append(run.checkpoint_folder(best))
    files = [p for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_file()]
    return [*names, *(p.relative_to(run.path).as_posix() for p in files)]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _hashed(file: Path) -> _File:
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return _File(bytes=file.stat().st_size, sha256=sha256)


# What is there


@dataclass(frozen=True)
class _Theirs:
    names: frozenset[str]
    files: dict[str, _File]


def _ready(api: HfApi, repo: str, run_id: str) -> tuple[str, _Theirs]:
    """The head that the commit must follow, and what is there. Raises HubError if it must not be written to."""
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=True, exist_ok=True)
        info = api.model_info(repo)
    head = info.sha or ""
    names = frozenset(s.rfilename for s in info.siblings or ())
    record = _record_at(api, repo, head) if _RECORD in names else None
    _refuse(repo, info, is_own=record is not None and record.run_id == run_id)
    return head, _Theirs(
        names, {p: f for p, f in record.files.items() if p in names} if record else {}
    )


def _refuse(repo: str, info: Any, *, is_own: bool) -> None:
    if not info.private:
        raise HubError(
            f"{repo} can be read by everyone, and a copy of a run holds its rows.",
            "Choose another name, or make that repository private first.",
        )
    others = {s.rfilename for s in info.siblings or ()} - _NOT_OURS
    if others and not is_own:
        raise HubError(
            f"{repo} holds files that are not from this run ({min(others)} and others).",
            "Choose another name: nothing in it was changed.",
        )


def _record_at(api: HfApi, repo: str, revision: str) -> _Record | None:
    """None if there is none, or it is not ours."""
    if not api.file_exists(repo, _RECORD, revision=revision):
        return None
    file = api.hf_hub_download(repo, _RECORD, revision=revision)
    try:
        return _Record.model_validate_json(Path(file).read_bytes())
    except ValidationError:
        return None


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, QloraSpaceError) else f"{type(error).__name__}."
