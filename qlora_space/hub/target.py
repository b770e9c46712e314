"""What is at a repository's name before a push: nothing, files of this run, or files of anything else.

Every commit of ours names its run and its push, so the history says what came from here and what was changed by
somebody else since.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoFile

from qlora_space.core.bounded_json import Unreadable, parse_json
from qlora_space.hub.account import may_write
from qlora_space.hub.adapter_files import CARD_FILE
from qlora_space.hub.connection import CLIENT_ERRORS, hub_api, hub_error
from qlora_space.hub.download import (
    ADAPTER_FILES,
    MOST_RECORD_BYTES,
    MOST_RECORD_DEPTH,
    RECORD_FILE,
)

_MADE_BY_THE_HUB = {".gitattributes"}  # in every new repository
_OURS = re.compile(r"Run ([0-9a-f]{32}), push ([0-9a-f]+), by qlora_space\.")
_SOURCES = (*ADAPTER_FILES, CARD_FILE, RECORD_FILE)


@dataclass(frozen=True)
class Target:
    """What is at a repository's name before a push. ours: files of the same run, or none. changed: names of files of
    ours that somebody changed there since."""

    state: Literal["free", "ours", "foreign", "not writable"]
    is_private: bool = False
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remote:
    """A repository at its newest commit `sha`.

    `ours` is the newest commit of this run and `push` the id of that push; '' without one. `foreign`: names of files
    that are not from this run.
    """

    sha: str
    is_private: bool
    names: frozenset[str]
    ours: str
    push: str
    foreign: frozenset[str]


def commit_description(run_id: str, push_id: str) -> str:
    """By which a commit of ours is found again."""
    return f"Run {run_id}, push {push_id}, by qlora_space."


def read_target(repo: str, run_id: str, token: str | None) -> Target:
    """What publishing this run there would meet. Raises HubError if the Hub does not answer."""
    api = hub_api(token)
    try:
        remote = read_remote(api, repo, run_id)
        if remote is None:
            return Target("free")
        if not may_write(repo, token):
            return Target("not writable", remote.is_private)
        if remote.foreign:
            return Target("foreign", remote.is_private)
        changed = changed_by_others(api, repo, remote, {*remote.names, *_SOURCES})
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be checked") from None
    return Target("ours", remote.is_private, changed)


def read_remote(api: HfApi, repo: str, run_id: str) -> Remote | None:
    """None: there is no such repository, or the token cannot see it. Raises the client's own errors."""
    try:
        info = api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError:
        return None
    sha, names = info.sha or "", _names(info)
    ours, push = _newest_of(api, repo, sha, run_id) if names else ("", "")
    is_ours = not names or _run_at(api, repo, info) == run_id
    foreign = frozenset() if is_ours else names
    return Remote(sha, bool(info.private), names, ours, push, foreign)


def _names(info: ModelInfo) -> frozenset[str]:
    return frozenset(s.rfilename for s in info.siblings or ()) - _MADE_BY_THE_HUB


def _newest_of(api: HfApi, repo: str, sha: str, run_id: str) -> tuple[str, str]:
    """Commit and push id of the newest commit of this run that `sha` rests on."""
    for commit in api.list_repo_commits(repo, revision=sha):
        found = _OURS.search(commit.message)
        if found and found[1] == run_id:
            return commit.commit_id, found[2]
    return "", ""


def _run_at(api: HfApi, repo: str, info: ModelInfo) -> str:
    """Whose files they are, by the record, which anybody may have written; '' if it does not say."""
    sizes = {s.rfilename: s.size for s in info.siblings or ()}
    size = sizes.get(RECORD_FILE)
    if size is None or size > MOST_RECORD_BYTES:
        return ""
    file = api.hf_hub_download(repo, RECORD_FILE, revision=info.sha)
    try:
        return str(parse_json(Path(file).read_bytes(), MOST_RECORD_DEPTH)["run_id"])
    except (Unreadable, KeyError, TypeError):
        return ""


def changed_by_others(
    api: HfApi, repo: str, remote: Remote, names: Iterable[str]
) -> tuple[str, ...]:
    """Those of the files that were changed, added or deleted since the newest push of this run, sorted.

    Without a push of this run in the history, which its owner may have squashed, nothing is known to be changed.
    """
    if remote.ours in ("", remote.sha):
        return ()
    asked = sorted(names)
    before = files_at(api, repo, asked, remote.ours)
    after = files_at(api, repo, asked, remote.sha)
    return tuple(name for name in asked if _blob(before.get(name)) != _blob(after.get(name)))


def files_at(api: HfApi, repo: str, names: list[str], revision: str) -> dict[str, RepoFile]:
    """Those of the files that are there, by name."""
    found = api.get_paths_info(repo, names, revision=revision)
    return {f.path: f for f in found if isinstance(f, RepoFile)}


def _blob(file: RepoFile | None) -> str:
    return file.blob_id if file else ""
