"""A copy of a run in a private Hub repository, so that losing the machine costs minutes of training and not the run.

Each copy is one commit: the newest and the best checkpoint, the adapter, the prepared rows, request, plan, report and
events, mirror.json with the sha256 of every file, and a card by which the copy is found (`mirrored_runs`). The same
commit deletes what the run no longer has.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.errors import HubError, QloraSpaceError, RunError
from qlora_space.core.visitor import LOCAL
from qlora_space.hub.account import full_name_to_publish
from qlora_space.hub.connection import as_argument, explained_errors, hub_api, hub_error, is_repo_id
from qlora_space.hub.mirrored_runs import mirror_card
from qlora_space.runs import RunFolder
from qlora_space.runs.folder import set_owner

CADENCE_SECONDS = 300.0  # the Hub limits the number of commits
_POLL_SECONDS = 2.0
_RETRY_SECONDS = 60.0
_FINAL_COPY_SECONDS = 60.0
_MANIFEST = "mirror.json"
_CARD = "README.md"
_COPIED_PATH = re.compile(
    r"(request|plan|report|unsent_push)\.json|(events|publications|proofs)\.jsonl|name|"
    r"(data|adapter|start|checkpoints/step-\d{6,})/\w[\w.-]*"
)
_EVENTS = "events.jsonl"
_OF_WHO_TRAINS = ("report.json", "publications.jsonl", "proofs.jsonl", "unsent_push.json")
_TOP_LEVEL_FILES = ("request.json", "plan.json", "name", *_OF_WHO_TRAINS)
_NOT_OF_THE_RUN = {".gitattributes", _MANIFEST}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """The content of mirror.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    files: dict[str, _File] = Field(description="By path in the run folder.")


@dataclass(frozen=True)
class _RemoteCopy:
    """All names in the repository, and those files of the copy before that are still there."""

    names: frozenset[str]
    files: dict[str, _File]


class Mirror:
    """Copies the run after each checkpoint, in a thread of its own.

    A slow or dead network means an older copy and a note in the log, nothing else.
    """

    def __init__(
        self,
        run: RunFolder,
        repo: str,
        token: str | None,
        report: Callable[[str, bool], object],
        cadence_seconds: float = CADENCE_SECONDS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """`report(sentence, is_failure)` is called in that thread when copying fails, and when it works again."""
        self._run, self._repo, self._token, self._report = run, repo, token, report
        self._cadence_seconds, self._retry_seconds = cadence_seconds, retry_seconds
        self._copied_step: int | None = None
        self._is_failing = False
        self._ending, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._copy_until_closed, daemon=True)
        self._thread.start()

    def close(self, seconds: float = _FINAL_COPY_SECONDS) -> None:
        """Make a final copy, which has the end of the run. Returns after `seconds` at the latest."""
        self._ending.set()
        self._news.set()
        self._thread.join(seconds)

    def renew_token(self, token: str) -> None:
        """The owner has signed in anew: a copy that failed is tried again at once."""
        self._token = token
        if self._is_failing:
            self._news.set()

    def _copy_until_closed(self) -> None:
        wait = _POLL_SECONDS
        while True:
            self._news.wait(wait)
            self._news.clear()
            if self._ending.is_set():
                break
            step = self._run.resume_step()
            wait = _POLL_SECONDS
            if step is not None and step != self._copied_step:
                wait = self._cadence_seconds if self._copy(step) else self._retry_seconds
        self._copy(self._run.resume_step())

    def _copy(self, step: int | None) -> bool:
        try:
            push_copy(self._run, self._repo, self._token)
        except Exception as error:  # whatever it is, training continues
            was_failing, self._is_failing = self._is_failing, True
            if not was_failing and not self._ending.is_set():
                text = f"The copy on the Hub could not be updated: {_sentence(error)} "
                self._report(text + "Training continues; the copy will be tried again.", True)
            return False
        if self._is_failing and not self._ending.is_set():
            self._report("The copy on the Hub is up to date again.", False)
        self._is_failing, self._copied_step = False, step
        return True


def check_can_mirror(repo: str, token: str | None) -> None:
    """Ask the Hub before training. Raises HubError if the repository cannot hold the copy of a new run."""
    api, name = hub_api(token), full_name_to_publish(repo, token)
    with explained_errors(name, HubError):
        try:
            info = api.model_info(name)
        except RepositoryNotFoundError:
            return
    _refuse(name, info, is_own=False)


def push_copy(run: RunFolder, repo: str, token: str | None) -> str:
    """Make the repository the copy of the run as it is now, in one commit; returns the commit's sha.

    Raises HubError if the repository is not private, holds files of anything else, or does not answer; OSError.
    """
    api, name = hub_api(token), full_name_to_publish(repo, token)
    with tempfile.TemporaryDirectory(prefix=".mirror-", dir=run.path) as scratch:
        stage = Path(scratch) / "run"
        manifest = _stage(run, stage)
        try:
            head, before = _prepare_repo(api, name, run.id)
            operations = _operations(stage, manifest, before, mirror_card(run, name))
            return api.create_commit(
                name, operations, commit_message=f"Copy of run {run.id[:8]}", parent_commit=head
            ).oid
        except QloraSpaceError:
            raise
        except Exception as error:  # the client wraps a failed upload in errors of many types
            raise hub_error(error, f"The copy in {name} could not be updated") from None


def _operations(
    stage: Path, manifest: _Manifest, before: _RemoteCopy, card: str
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What turns the copy before into this one."""
    gone = before.names - manifest.files.keys() - _NOT_OF_THE_RUN - {_CARD}
    new = [p for p, file in manifest.files.items() if before.files.get(p) != file]
    return [
        *(CommitOperationAdd(path, stage / path) for path in new),
        CommitOperationAdd(_MANIFEST, manifest.model_dump_json(indent=1).encode()),
        CommitOperationAdd(_CARD, card.encode()),
        *(CommitOperationDelete(path) for path in sorted(gone)),
    ]


def fetch_copy(repo: str, runs_folder: Path, token: str | None, owner: str = LOCAL) -> RunFolder:
    """Download a copied run into `runs_folder`, whole or not at all; it is `owner`'s from now on.

    Raises HubError if a file differs from what was copied, RunError if the run is on this machine already, DiskFull.
    """
    if not is_repo_id(repo):
        raise HubError(f"{repo[:100]!r} cannot be a repository.", "Write owner/name.")
    api = hub_api(token)
    with explained_errors(repo, HubError):
        head = api.model_info(repo).sha or ""
        manifest = _manifest_at(api, repo, head)
        if manifest is None or not all(_COPIED_PATH.fullmatch(path) for path in manifest.files):
            raise HubError(f"{repo} is no copy of a run.", "Give the name that it was copied to.")
        run = RunFolder(runs_folder / manifest.run_id)
        if run.path.exists():
            raise RunError("This run is on this machine already.", f"Resume it: {run.id}.")
        _download(repo, head, manifest, run, token, owner)
    return run


def bring_home(run: RunFolder, repo: str, token: str | None) -> bytes:
    """Take what the copy has and the run has not: rows, checkpoints, adapter and report of who trained it elsewhere.
    Returns the events of the copy, which are not written.

    Raises HubError if the copy is not of this run, or a file is not what was copied; OSError.
    """
    api = hub_api(token)
    with explained_errors(repo, HubError):
        head = api.model_info(repo).sha or ""
        manifest = _manifest_at(api, repo, head)
        if manifest is None or manifest.run_id != run.id or not _is_of_a_run(manifest):
            raise HubError(f"{repo} is no copy of this run.", "Nothing was taken from it.")
        missing = {p: f for p, f in manifest.files.items() if _is_missing(run, p, f)}
        with tempfile.TemporaryDirectory(prefix=".fetched-", dir=run.path) as scratch:
            folder = Path(scratch) / "run"
            wanted = [*missing, _EVENTS]
            snapshot_download(
                repo, revision=head, allow_patterns=wanted, local_dir=folder, token=as_argument(token)
            )  # fmt: skip
            _verify_files(repo, folder, {p: manifest.files[p] for p in wanted})
            for path in _last_ones_last(missing):
                (run.path / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).replace(run.path / path)
            return (folder / _EVENTS).read_bytes()


def _is_missing(run: RunFolder, path: str, file: _File) -> bool:
    """Of what who trains writes: what was asked for stays as it is here."""
    if "/" not in path and path not in _OF_WHO_TRAINS:
        return False
    here = run.path / path
    return not here.is_file() or _hash(here) != file


def _last_ones_last(paths: Iterable[str]) -> list[str]:
    """A checkpoint is one when its state is there, a run is done when its report is."""
    return sorted(paths, key=lambda path: (path == "report.json", path.endswith("/state.json")))


def _is_of_a_run(manifest: _Manifest) -> bool:
    return _EVENTS in manifest.files and all(map(_COPIED_PATH.fullmatch, manifest.files))


def _download(
    repo: str, revision: str, manifest: _Manifest, run: RunFolder, token: str | None, owner: str
) -> None:
    """Into a folder beside the run's, which gets its name when every file is verified."""
    partial = run.path.with_name(f".{run.id}.fetched")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        snapshot_download(
            repo, revision=revision, allow_patterns=list(manifest.files), local_dir=partial,
            token=as_argument(token),
        )  # fmt: skip
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        _verify(repo, partial, manifest)
        _wait_for_a_person(RunFolder(partial))
        set_owner(partial, owner)
        partial.rename(run.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _wait_for_a_person(fetched: RunFolder) -> None:
    """Whoever wrote the copy pushes nothing in the name of whoever fetches it."""
    unsent = fetched.unsent_push()
    if unsent is None:
        fetched.forget_unsent_push()  # damaged
        return
    asks = {"why": "It came with the copy of this run.", "is_refused": True}
    fetched.keep_unsent_push(unsent.model_copy(update=asks))


def _verify(repo: str, folder: Path, manifest: _Manifest) -> None:
    _verify_files(repo, folder, manifest.files)
    try:
        RunFolder(folder).request()
        RunFolder(folder).plan()
    except (OSError, ValidationError):
        raise HubError(
            f"{repo} was copied by another version of qlora_space.", "Fetch it with that version."
        ) from None


def _verify_files(repo: str, folder: Path, files: Mapping[str, _File]) -> None:
    for path, file in files.items():
        if not (folder / path).is_file() or _hash(folder / path) != file:
            raise HubError(f"{path} in {repo} is not what was copied.", "This copy is not used.")


# The local side: what is copied


def _stage(run: RunFolder, stage: Path) -> _Manifest:
    """Hard links to all files, so that the run may delete its checkpoints meanwhile. Raises OSError."""
    attempts = 3
    for attempt in range(1, attempts + 1):
        shutil.rmtree(stage, ignore_errors=True)
        try:
            for path in _paths(run):
                (stage / path).parent.mkdir(parents=True, exist_ok=True)
                _link(run.path / path, stage / path)
            break
        except FileNotFoundError:  # a checkpoint was deleted just now
            if attempt == attempts:
                raise
    events = run.events_file.read_bytes()
    (stage / "events.jsonl").write_bytes(events[: events.rfind(b"\n") + 1])
    files = sorted(p for p in stage.rglob("*") if p.is_file())
    hashed = {p.relative_to(stage).as_posix(): _hash(p) for p in files}
    return _Manifest(run_id=run.id, files=hashed)


def _paths(run: RunFolder) -> list[str]:
    names = [n for n in _TOP_LEVEL_FILES if (run.path / n).is_file()]
    folders = [run.data_folder, run.adapter_folder, run.start_folder]
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


def _hash(file: Path) -> _File:
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return _File(bytes=file.stat().st_size, sha256=sha256)


# The remote side: what is in the repository


def _prepare_repo(api: HfApi, repo: str, run_id: str) -> tuple[str, _RemoteCopy]:
    """Create the repository if need be; the commit to build on, and what is there.

    Raises HubError if it must not be written to.
    """
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=True, exist_ok=True)
        info = api.model_info(repo)
    head = info.sha or ""
    names = frozenset(s.rfilename for s in info.siblings or ())
    manifest = _manifest_at(api, repo, head) if _MANIFEST in names else None
    _refuse(repo, info, is_own=manifest is not None and manifest.run_id == run_id)
    files = manifest.files if manifest else {}
    return head, _RemoteCopy(names, {p: f for p, f in files.items() if p in names})


def _refuse(repo: str, info: Any, *, is_own: bool) -> None:
    if not info.private:
        raise HubError(
            f"{repo} can be read by everyone, and a copy of a run holds its rows.",
            "Choose another name, or make that repository private first.",
        )
    others = {s.rfilename for s in info.siblings or ()} - _NOT_OF_THE_RUN
    if others and not is_own:
        raise HubError(
            f"{repo} holds files that are not from this run ({min(others)} and others).",
            "Choose another name: nothing in it was changed.",
        )


def _manifest_at(api: HfApi, repo: str, revision: str) -> _Manifest | None:
    """None if there is none, or it was not written by us."""
    if not api.file_exists(repo, _MANIFEST, revision=revision):
        return None
    file = api.hf_hub_download(repo, _MANIFEST, revision=revision)
    try:
        return _Manifest.model_validate_json(Path(file).read_bytes())
    except ValidationError:
        return None


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, QloraSpaceError) else f"{type(error).__name__}."
