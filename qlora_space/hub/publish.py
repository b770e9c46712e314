"""Push what a run made: everything in one commit, safely retried, then verified file by file.

huggingface_hub does not retry the request that commits: it cannot know whether a lost answer meant success. Here a
push has an id, made of the run and the content, in its commit message. Whoever tries again, this process or the next
one, first looks for it in the repository's history.

A new repository is private until it is complete: nobody ever sees one that is half there.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import SpaceHardware as HubHardware

from qlora_space.core.errors import Conflict, HubError, HubUnavailable, QloraSpaceError
from qlora_space.hub.account import full_name_to_publish
from qlora_space.hub.adapter_files import files_to_publish
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    client_error,
    hub_api,
    hub_error,
    may_pass,
    page_of,
    status_of,
)
from qlora_space.hub.files import PublishedFile
from qlora_space.hub.target import (
    Remote,
    changed_by_others,
    commit_description,
    files_at,
    read_remote,
    repo_type_of,
)
from qlora_space.runs.publication import SpaceHardware, What

_ATTEMPTS = 5
_LONGEST_WAIT_SECONDS = 300.0  # the Hub's rate limits are for windows of 5 minutes
_SAFE = "The adapter is safe on this machine: press Publish again."
_CONFLICT = 409  # it exists: an earlier attempt created it and the answer was lost
_MEANWHILE = (_CONFLICT, 412)  # somebody else committed meanwhile
_PAYMENT_REQUIRED, _REFUSED = 402, 403
_TITLES: dict[What, str] = {"adapter": "the adapter", "demo-space": "a demo"}
HARDWARE_NAMES: dict[SpaceHardware, str] = {"zero-a10g": "ZeroGPU", "cpu-basic": "CPU"}


@dataclass(frozen=True)
class Published:
    """Size and hash of every file there are those here. `stayed_private`: it was to be public, and this token may not
    change that. `notes`: what its owner should know."""

    repo: str
    url: str
    commit: str
    num_files: int
    created: bool
    private: bool = False
    stayed_private: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PushOptions:
    """How one push goes about what it meets.

    `replace`: files that somebody changed on the Hub may be overwritten. `was_created`: an earlier attempt made the
    repository. `note_created` is called with True before a repository is made, and with False if somebody else made it.
    `hardware`: of a new Space.
    """

    replace: bool = False
    was_created: bool = False
    hardware: SpaceHardware | None = None
    note_created: Callable[[bool], object] = lambda _: None


def publish_adapter(  # noqa: PLR0913 - the parts of one commit
    adapter_folder: Path,
    card: str,
    repo: str,
    private: bool,
    token: str | None,
    run_id: str,
    record: str = "{}",
    packed_base: Path | None = None,
    chart: bytes = b"",
    options: PushOptions = PushOptions(),
) -> Published:
    """Push the adapter with its card, its record (a JSON object without secrets) and its packed base and the chart of
    its losses (a PNG), if any; verify.

    The repository gets all files in one commit, or none. A repository with files of anything else is never touched.
    Publishing the same run again adds a commit if anything is different. The adapter folder is only read.
    Raises HubError; HubUnavailable and NotSignedIn where the same push may succeed later; Conflict.
    """
    files = files_to_publish(adapter_folder, card, record, run_id, packed_base, chart)
    return publish_files(files, "adapter", repo, private, token, run_id, options)


def publish_files(
    files: tuple[PublishedFile, ...],
    what: What,
    repo: str,
    private: bool,
    token: str | None,
    run_id: str,
    options: PushOptions = PushOptions(),
) -> Published:
    """Push the files, in the same way, to a repository that holds nothing but that of this run; the record among them
    says so. What an earlier record lists under `files` and is not sent any more goes. Raises as publish_adapter."""
    push = _Push(hub_api(token), token, repo, private, run_id, what, files, options)
    return _retried(push)


@dataclass
class _Push:
    """One publication over all its attempts."""

    api: HfApi
    token: str | None
    repo: str
    private: bool
    run_id: str
    what: What
    files: tuple[PublishedFile, ...]
    options: PushOptions
    created: bool = field(init=False)

    def __post_init__(self) -> None:
        self.created = self.options.was_created

    @property
    def type(self) -> str:
        return repo_type_of(self.what)

    @property
    def name(self) -> str:
        """What is sent, in words."""
        return _TITLES.get(self.what, "the model")

    @property
    def id(self) -> str:
        """The same for the same content, whichever process sends it."""
        parts = "".join(f"{file.name} {file.sha256}\n" for file in self.files)
        return hashlib.sha256(f"{self.run_id}\n{parts}".encode()).hexdigest()[:16]

    def attempt(self) -> Published:
        self.repo = full_name_to_publish(self.repo, self.token, self.type)
        remote = read_remote(self.api, self.repo, self.run_id, self.what) or self._create()
        self._refuse(remote)
        commit = self._commit_on(remote)
        self._verify(commit)
        is_private = remote.is_private and not self._made_public(remote)
        return Published(
            repo=self.repo,
            url=page_of(self.repo, self.type),
            commit=commit,
            num_files=len(self.files),
            created=self.created,
            private=is_private,
            stayed_private=is_private and self._is_to_be_public,
        )

    def _create(self) -> Remote:
        self.options.note_created(True)
        was_sent, self.created = self.created, True
        try:
            self._create_repo()
        except CLIENT_ERRORS as error:
            if status_of(error) != _CONFLICT:
                self._explain_refused_space(error)
                raise
            self.created = was_sent  # else somebody else made it a moment ago
            self.options.note_created(was_sent)
        remote = read_remote(self.api, self.repo, self.run_id, self.what)
        if remote is None:
            raise ConnectionError(f"{self.repo} was created and is not there yet")
        return remote

    def _create_repo(self) -> None:
        if self.type == "model":
            self.api.create_repo(self.repo, private=True)
            return
        hardware = cast(HubHardware | None, self.options.hardware)
        self.api.create_repo(
            self.repo, repo_type="space", space_sdk="gradio", space_hardware=hardware, private=True
        )

    def _explain_refused_space(self, error: Exception) -> None:
        """Raises HubError if the Hub does not let this account make such a Space."""
        status, hardware = status_of(error), self.options.hardware
        if hardware is None or status not in (_PAYMENT_REQUIRED, _REFUSED):
            return
        why = (
            "wants a paid plan or a payment method for"
            if status == _PAYMENT_REQUIRED
            else "does not let this account or token make"
        )
        limits = "A free account in good standing may have two ZeroGPU Spaces, PRO ten."
        raise HubError(
            f"{self.repo}: the Hub {why} a Space on {HARDWARE_NAMES[hardware]}.",
            f"{limits} Or give others the run's own link: “Share” on its page.",
        ) from None

    def _refuse(self, remote: Remote) -> None:
        """Raises HubError if this repository cannot take the adapter."""
        if self.private and not remote.is_private:
            raise HubError(
                f"{self.repo} exists and everyone can read it, but {self.name} is to be private.",
                "Choose another name, or make that repository private first.",
            )
        if remote.foreign:
            raise HubError(
                f"{self.repo} holds files that are not from this run, or are something else of it "
                f"({min(remote.foreign)} and others).",
                "Choose another name: nothing in it was changed.",
            )

    def _commit_on(self, remote: Remote) -> str:
        """The commit of this push: the one that is there if only its answer was lost, else a new one."""
        names = {*(f.name for f in self.files), *self._gone(remote)}
        changed = changed_by_others(self.api, self.repo, remote, names, self.type)
        if remote.push == self.id and not (changed and self.options.replace):
            return remote.ours
        if changed and not self.options.replace:
            raise Conflict(
                f"{', '.join(changed)} in {self.repo} {'was' if len(changed) == 1 else 'were'} changed on the Hub "
                "since this run was published there.",
                "Replace what was changed there, or choose another name. Nothing was changed.",
            )
        return self._send(remote)

    def _gone(self, remote: Remote) -> frozenset[str]:
        """What was sent before and is not part of it any more: weights of another number of files, for example."""
        return remote.sent - {f.name for f in self.files}

    def _send(self, remote: Remote) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(f.name, f.source) for f in self.files
        ]
        operations += [CommitOperationDelete(name) for name in sorted(self._gone(remote))]
        made = self.api.create_commit(
            self.repo,
            operations,
            commit_message=f"Publish {self.name} of run {self.run_id[:8]}",
            commit_description=commit_description(self.run_id, self.id),
            repo_type=self.type,
            parent_commit=remote.sha,
        )
        return made.oid

    def _verify(self, commit: str) -> None:
        """Compare size and hash of every file in that commit. Raises HubError on a difference."""
        remote = files_at(self.api, self.repo, [f.name for f in self.files], commit, self.type)
        for file in self.files:
            if file.name not in remote or not file.is_same(remote[file.name]):
                raise HubError(f"{file.name} in {self.repo} is not the file that was sent.", _SAFE)

    @property
    def _is_to_be_public(self) -> bool:
        return self.created and not self.private

    def _made_public(self, remote: Remote) -> bool:
        """Show a complete new repository to everybody, if that was asked for and the token may."""
        if not (self._is_to_be_public and remote.is_private):
            return False
        try:
            self.api.update_repo_settings(self.repo, private=False, repo_type=self.type)
        except CLIENT_ERRORS as error:
            if status_of(error) != _REFUSED:
                raise
            return False
        return True


def _retried(push: _Push) -> Published:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return push.attempt()
        except HubUnavailable as error:
            failure: QloraSpaceError = error
        except QloraSpaceError:
            raise
        except (*CLIENT_ERRORS, RuntimeError, ValueError) as error:
            cause = client_error(error)
            failure = hub_error(cause, f"{push.repo} could not be published", _SAFE)
            if not (may_pass(cause) or status_of(cause) in _MEANWHILE):
                raise failure from None
        wait = getattr(failure, "wait_seconds", 0.0) or float(2 ** (attempt - 1))
        if attempt == _ATTEMPTS or wait > _LONGEST_WAIT_SECONDS:
            raise failure from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
