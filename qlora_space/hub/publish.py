"""Push an adapter: everything in one commit, safely retried, then verified file by file.

huggingface_hub does not retry the request that commits: it cannot know whether a lost answer meant success. Here every
push has an id in its commit message, and a retry first looks for a commit with that id.
"""

import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoFile

from qlora_space.core.errors import HubError, QloraSpaceError
from qlora_space.hub.account import full_name_to_publish, may_write
from qlora_space.hub.adapter_files import files_to_publish
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    RETRY_STATUS,
    TransportError,
    client_error,
    hub_api,
    hub_error,
    page_of,
    status_of,
    wait_seconds,
)
from qlora_space.hub.download import RECORD_FILE
from qlora_space.hub.files import PublishedFile

_ATTEMPTS = 5
_LONGEST_WAIT_SECONDS = 300.0  # the Hub's rate limits are for windows of 5 minutes
_SAFE = "The adapter is safe on this machine: press Publish again."
_MADE_BY_THE_HUB = {".gitattributes"}  # in every new repository
_CONFLICT = 409  # it exists: an earlier attempt created it and the answer was lost
_PRECONDITION_FAILED = 412  # somebody else committed meanwhile


@dataclass(frozen=True)
class Verified:
    """What was compared after the push. None: not compared."""

    files: bool
    logits_max_diff: float | None = None


@dataclass(frozen=True)
class Published:
    repo: str
    url: str
    commit: str
    num_files: int
    verified: Verified
    created: bool


@dataclass(frozen=True)
class Target:
    """What is at a repository's name before a push. ours: files of the same run, or none."""

    state: Literal["free", "ours", "foreign", "not writable"]
    is_private: bool = False


def read_target(repo: str, run_id: str, token: str | None) -> Target:
    """What publishing this run there would meet. Raises HubError if the Hub does not answer."""
    api = hub_api(token)
    try:
        info = _info(api, repo)
        if info is None:
            return Target("free")
        is_private = bool(info.private)
        if not may_write(repo, token):
            return Target("not writable", is_private)
        is_ours = not _foreign_files(api, repo, info, run_id)
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be checked") from None
    return Target("ours" if is_ours else "foreign", is_private)


def publish_adapter(  # noqa: PLR0913 - the parts of one commit
    adapter_folder: Path,
    card: str,
    repo: str,
    private: bool,
    token: str | None,
    run_id: str,
    record: str = "{}",
    packed_base: Path | None = None,
) -> Published:
    """Push the adapter with its card, its record (a JSON object without secrets) and its packed base, if any; verify.

    The repository gets all files in one commit, or none. A repository with files of anything else is never touched.
    Publishing the same run again adds a commit. The adapter folder is only read. Raises HubError.
    """
    files = files_to_publish(adapter_folder, card, record, run_id, packed_base)
    return _retried(
        _Push(hub_api(token), full_name_to_publish(repo, token), private, run_id, files)
    )


@dataclass
class _Push:
    """One publication over all its attempts; a step that succeeded is not repeated."""

    api: HfApi
    repo: str
    private: bool
    run_id: str
    files: tuple[PublishedFile, ...]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    created: bool = False
    was_sent: bool = False
    commit: str = ""

    def attempt(self) -> Published:
        if self.was_sent and not self.commit:
            self.commit = self._commit_with_id()
        if not self.commit:
            self.commit = self._send(self._prepare_repo())
        self._verify()
        return Published(
            repo=self.repo,
            url=page_of(self.repo),
            commit=self.commit,
            num_files=len(self.files),
            verified=Verified(files=True),
            created=self.created,
        )

    def _commit_with_id(self) -> str:
        """The commit of this push if only its answer was lost, else ''."""
        commits = self.api.list_repo_commits(self.repo)
        return next((c.commit_id for c in commits if self.id in c.message), "")

    def _prepare_repo(self) -> str:
        """Create the repository if need be; the commit to build on."""
        info = _info(self.api, self.repo)
        if info is None:
            self._create_repo()
            info = self.api.model_info(self.repo)
        if self.private and not info.private:
            raise HubError(
                f"{self.repo} exists and everyone can read it, but the adapter is to be private.",
                "Choose another name, or make that repository private first.",
            )
        self._refuse_foreign(info)
        return info.sha or ""

    def _create_repo(self) -> None:
        self.created = True
        try:
            self.api.create_repo(self.repo, private=self.private)
        except CLIENT_ERRORS as error:
            if status_of(error) != _CONFLICT:
                raise

    def _refuse_foreign(self, info: ModelInfo) -> None:
        if names := _foreign_files(self.api, self.repo, info, self.run_id):
            raise HubError(
                f"{self.repo} holds files that are not from this run ({min(names)} and others).",
                "Choose another name: nothing in it was changed.",
            )

    def _send(self, parent: str) -> str:
        operations = [CommitOperationAdd(f.name, f.source) for f in self.files]
        self.api.preupload_lfs_files(self.repo, operations, free_memory=False)
        self.was_sent = True
        made = self.api.create_commit(
            self.repo,
            operations,
            commit_message=f"Publish the adapter of run {self.run_id[:8]}",
            commit_description=f"Run {self.run_id}, push {self.id}, by qlora_space.",
            parent_commit=parent,
        )
        return made.oid

    def _verify(self) -> None:
        """Compare size and hash of every file in that commit. Raises HubError on a difference."""
        names = [f.name for f in self.files]
        found = self.api.get_paths_info(self.repo, names, revision=self.commit)
        remote = {f.path: f for f in found if isinstance(f, RepoFile)}
        for file in self.files:
            if file.name not in remote or not file.is_same(remote[file.name]):
                raise HubError(f"{file.name} in {self.repo} is not the file that was sent.", _SAFE)


def _info(api: HfApi, repo: str) -> ModelInfo | None:
    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:
        return None


def _foreign_files(api: HfApi, repo: str, info: ModelInfo, run_id: str) -> set[str]:
    """Names of its files, if they are not from this run."""
    names = {s.rfilename for s in info.siblings or ()} - _MADE_BY_THE_HUB
    is_ours = not names or _remote_run_id(api, repo, info.sha or "", names) == run_id
    return set() if is_ours else names


def _remote_run_id(api: HfApi, repo: str, sha: str, names: set[str]) -> str:
    if RECORD_FILE not in names:
        return ""
    file = api.hf_hub_download(repo, RECORD_FILE, revision=sha)
    try:
        return str(json.loads(Path(file).read_bytes())["run_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _retried(push: _Push) -> Published:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return push.attempt()
        except QloraSpaceError:
            raise
        except (*CLIENT_ERRORS, RuntimeError, ValueError) as error:
            cause = client_error(error)
            wait = wait_seconds(cause) or float(2 ** (attempt - 1))
            if not _may_retry(cause) or attempt == _ATTEMPTS or wait > _LONGEST_WAIT_SECONDS:
                raise hub_error(cause, f"{push.repo} could not be published", _SAFE) from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _may_retry(error: Exception) -> bool:
    status = status_of(error)
    if status is not None:
        return status in (*RETRY_STATUS, _PRECONDITION_FAILED)
    # An answer that is not JSON was cut short, or is a proxy's error page; xet raises plain RuntimeErrors.
    transient = (TransportError, ConnectionError, json.JSONDecodeError, RuntimeError)
    return isinstance(error, transient)
