"""The settings of a run from the record of its published adapter, whose author is a stranger.

Data and base are pinned to the commits that the run had. What names a file, a folder or a repository of its author is
left out.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.hf_api import RepoFile
from pydantic import ValidationError

from qlora_space.core.bounded_json import Unreadable, parse_json
from qlora_space.core.errors import ModelError
from qlora_space.core.options import DEMO
from qlora_space.core.published_run import PublishedRun
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.account import is_repo_name
from qlora_space.hub.connection import explained_errors, hub_api, is_repo_id
from qlora_space.hub.download import MOST_RECORD_BYTES, MOST_RECORD_DEPTH, RECORD_FILE

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Of its author, or of the machine that it ran on.
_NOT_TAKEN = {
    "mirror_to",
    "hub_model_id",
    "hub_private_repo",
    "num_processes",
    "place",
    "flavor",
    "max_usd",
}
_OF_A_SOURCE = {
    "dataset": (
        "dataset_config", "dataset_split", "dataset_revision", "eval_split", "columns", "format",
    ),
    "base": ("base_revision",),
    "adapter": (),
}  # fmt: skip
_GONE = {
    "dataset": "Its dataset was a file of its author: choose one.",
    "base": "Its base was a folder of its author: choose one.",
    "adapter": "It went on from an adapter that is not on the Hub.",
}


def fetch_record(repo: str, token: str | None) -> Path:
    """The record's file, not parsed. Raises ModelError or HubError."""
    if not is_repo_name(repo):
        raise ModelError(f"{repo[:100]!r} is no repository on the Hub.", "Write owner/name.")
    with explained_errors(repo, ModelError):
        api = hub_api(token)
        sha = api.model_info(repo).sha or ""
        found = api.get_paths_info(repo, [RECORD_FILE], revision=sha)
        files = [f for f in found if isinstance(f, RepoFile)]
        if not files:
            raise ModelError(
                f"{repo} has no {RECORD_FILE}, so its run is not known.",
                "Name an adapter that qlora_space published.",
            )
        if files[0].size > MOST_RECORD_BYTES:
            raise ModelError(f"The record of {repo} is too large.", "Name another one.")
        return Path(api.hf_hub_download(repo, RECORD_FILE, revision=sha))


def read_record(repo: str, file: Path) -> PublishedRun:
    """For a process of its own: whoever wrote the record is a stranger. Raises ModelError."""
    try:
        record = parse_json(file.read_bytes(), MOST_RECORD_DEPTH)
        request, plan = record["request"], record["plan"]
        values = {n: v for n, v in request.items() if n in TrainingRequest.model_fields}
        pinned = {"dataset": plan["dataset"]["sha"], "base": plan["base"]["sha"]}
    except Unreadable as error:
        raise ModelError(f"The record of {repo} {error}.", "Name another one.") from None
    except (KeyError, TypeError, AttributeError):
        raise ModelError(f"The record of {repo} has no run in it.", "Name another one.") from None
    return _taken_over(repo, values, pinned)


def _taken_over(repo: str, values: dict[str, Any], pinned: dict[str, Any]) -> PublishedRun:
    left_out = []
    kept = {name: value for name, value in values.items() if name not in _NOT_TAKEN}
    for source, others in _OF_A_SOURCE.items():
        value = kept.get(source)
        if value is None or value == DEMO:
            continue
        is_name = isinstance(value, str) and is_repo_id(value) and "/" in value
        # What came from the Hub has a commit; a relative path has a hash, and looks like a name.
        is_pinned = bool(_COMMIT.fullmatch(str(pinned.get(source))))
        if not is_name or not (is_pinned or source == "adapter"):
            left_out.append(_GONE[source])
            kept = {n: v for n, v in kept.items() if n not in (source, *others)}
        elif is_pinned:
            kept[f"{source}_revision"] = pinned[source]
    request, refused = _valid(kept)
    left_out += [f"{name} has a value that is not used here." for name in refused]
    return PublishedRun(repo=repo, request=request, left_out=tuple(left_out))


def _valid(values: dict[str, Any]) -> tuple[TrainingRequest, list[str]]:
    """The request of those values that it may have, and the names of the others."""
    try:
        return TrainingRequest.model_validate(values), []
    except ValidationError as error:
        refused = sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]})
    kept = {name: value for name, value in values.items() if name not in refused}
    try:
        return TrainingRequest.model_validate(kept), refused
    except ValidationError:
        return TrainingRequest(), sorted(values)
