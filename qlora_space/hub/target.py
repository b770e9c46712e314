"""What is at a repository's name before a push: nothing, files of this run, or files of anything else.

Every commit of ours names its run and its push, so the history says what came from here and what was changed by
somebody else since.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoFile, SpaceInfo

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
from qlora_space.runs.publication import What

# In every new repository.
_MADE_BY_THE_HUB = {"model": {".gitattributes"}, "space": {".gitattributes", "README.md"}}
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
    that are not from this run, or are something else of it. `sent`: names of files there that the
    record says were sent.
    """

    sha: str
    is_private: bool
    names: frozenset[str]
    ours: str
    push: str
    foreign: frozenset[str]
    sent: frozenset[str] = frozenset()


def commit_description(run_id: str, push_id: str) -> str:
    """By which a commit of ours is found again."""
    return f"Run {run_id}, push {push_id}, by qlora_space."


def repo_type_of(what: What) -> str:
    """Of the Hub: 'model' or 'space'."""
    return "space" if what == "demo-space" else "model"


def read_target(repo: str, run_id: str, token: str | None, what: What = "adapter") -> Target:
    """What publishing that of this run there would meet. Raises HubError if the Hub does not answer."""
    api, repo_type = hub_api(token), repo_type_of(what)
    try:
        remote = read_remote(api, repo, run_id, what)
        if remote is None:
            return Target("free")
        if not may_write(repo, token, repo_type):
            return Target("not writable", remote.is_private)
        if remote.foreign:
            return Target("foreign", remote.is_private)
        changed = changed_by_others(api, repo, remote, {*remote.names, *_SOURCES}, repo_type)
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be checked") from None
    return Target("ours", remote.is_private, changed)


def read_remote(api: HfApi, repo: str, run_id: str, what: What = "adapter") -> Remote | None:
    """None: there is no such repository, or the token cannot see it. Raises the client's own errors."""
    repo_type = repo_type_of(what)
    read = api.space_info if repo_type == "space" else api.model_info
    try:
        info = read(repo, files_metadata=True)
    except RepositoryNotFoundError:
        return None
    sha, names = info.sha or "", _names(info, repo_type)
    ours, push = _newest_of(api, repo, sha, run_id, repo_type) if names else ("", "")
    record = _record_at(api, repo, info, repo_type) if names else {}
    made = (record.get("run_id"), record.get("what", "adapter"))
    foreign = frozenset() if not names or made == (run_id, what) else names
    files = record.get("files")
    sent = (
        names & {each for each in files if isinstance(each, str)}
        if isinstance(files, list)
        else frozenset()
    )
    return Remote(sha, bool(info.private), names, ours, push, foreign, sent)


def _names(info: ModelInfo | SpaceInfo, repo_type: str) -> frozenset[str]:
    return frozenset(s.rfilename for s in info.siblings or ()) - _MADE_BY_THE_HUB[repo_type]


def _newest_of(api: HfApi, repo: str, sha: str, run_id: str, repo_type: str) -> tuple[str, str]:
    """Commit and push id of the newest commit of this run that `sha` rests on."""
    for commit in api.list_repo_commits(repo, revision=sha, repo_type=repo_type):
        found = _OURS.search(commit.message)
        if found and found[1] == run_id:
            return commit.commit_id, found[2]
    return "", ""


def _record_at(
    api: HfApi, repo: str, info: ModelInfo | SpaceInfo, repo_type: str
) -> dict[str, Any]:
    """What its record says, which anybody may have written; {} without one that can be read."""
    sizes = {s.rfilename: s.size for s in info.siblings or ()}
    size = sizes.get(RECORD_FILE)
    if size is None or size > MOST_RECORD_BYTES:
        return {}
    file = api.hf_hub_download(repo, RECORD_FILE, revision=info.sha, repo_type=repo_type)
    try:
        found = parse_json(Path(file).read_bytes(), MOST_RECORD_DEPTH)
    except Unreadable:
        return {}
    return found if isinstance(found, dict) else {}


def changed_by_others(
    api: HfApi, repo: str, remote: Remote, names: Iterable[str], repo_type: str = "model"
) -> tuple[str, ...]:
    """Those of the files that were changed, added or deleted since the newest push of this run, sorted.

    Without a push of this run in the history, which its owner may have squashed, nothing is known to be changed.
    """
    if remote.ours in ("", remote.sha):
        return ()
    asked = sorted(names)
    before = files_at(api, repo, asked, remote.ours, repo_type)
    after = files_at(api, repo, asked, remote.sha, repo_type)
    return tuple(name for name in asked if _blob(before.get(name)) != _blob(after.get(name)))


def files_at(
    api: HfApi, repo: str, names: list[str], revision: str, repo_type: str = "model"
) -> dict[str, RepoFile]:
    """Those of the files that are there, by name."""
    found = api.get_paths_info(repo, names, revision=revision, repo_type=repo_type)
    return {f.path: f for f in found if isinstance(f, RepoFile)}


def _blob(file: RepoFile | None) -> str:
    return file.blob_id if file else ""
