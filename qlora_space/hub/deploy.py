"""A Space of one's own: created, or brought to what is asked. What is there already is not done twice.

`plan_deployment` only reads; `deploy` does what it says, in one commit and one request for each setting that differs.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceHardware, Volume
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from qlora_space.core.errors import HubError, RequestError
from qlora_space.core.wording import counted, duration
from qlora_space.hub.account import full_name_to_publish
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    client_error,
    hub_api,
    hub_error,
    page_of,
    status_of,
)
from qlora_space.hub.files import PublishedFile
from qlora_space.hub.space_files import PACKAGE_FOLDER, space_files

BUCKET_FOLDER = "/data"
_SPACE = "space"
_HOME_VARIABLE = "QLORA_SPACE_HOME"
_FREE_HARDWARE = "cpu-basic"
_ZERO_GPU = "zero-a10g"
_PAYMENT_REQUIRED = 402
_PRECONDITION_FAILED = 412
_MADE_BY_THE_HUB = {".gitattributes", "README.md"}  # in every new Space
_MARK = f"{PACKAGE_FOLDER}/__init__.py"
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AGAIN = "Run the same command again: what is done already is not done twice."


@dataclass(frozen=True)
class SpaceSettings:
    """What the owner decides. None: a Space that exists keeps what it has; a new one is private, on free hardware."""

    hardware: str | None = None
    private: bool | None = None
    sleep_seconds: int | None = None
    bucket: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Deployment:
    """What is to be done, or was.

    changes: a sentence for each; none: everything is as asked. commit: '' if none was made.
    """

    repo: str
    url: str
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    commit: str = ""


@dataclass(frozen=True)
class _Remote:
    """The Space as it is."""

    head: str
    private: bool
    files: dict[str, RepoFile]
    hardware: str | None
    sleep_seconds: int | None
    volumes: tuple[Volume, ...]
    variables: dict[str, str]
    secrets: frozenset[str]


@dataclass(frozen=True)
class _Change:
    text: str
    make: Callable[[], object] = field(repr=False)
    is_commit: bool = False


def plan_deployment(repo: str, settings: SpaceSettings, token: str | None) -> Deployment:
    """What `deploy` would do; nothing is written. Raises HubError or RequestError."""
    return _planned(repo, settings, token)[0]


def deploy(
    repo: str,
    settings: SpaceSettings,
    token: str | None,
    progress: Callable[[str], object] = lambda _: None,
) -> Deployment:
    """Do what differs, then read the files back. `progress` gets the sentence of each change before it is made.

    Raises HubError or RequestError; a second call goes on where the first one failed.
    """
    planned, changes = _planned(repo, settings, token)
    for change in changes:
        progress(change.text)
        with _explained(planned.repo, change.text):
            change.make()
    api = hub_api(token)
    with _explained(planned.repo, "Reading the files back"):
        remote = _read(api, planned.repo)
    if remote is None or _differing(remote, space_files()):
        raise HubError(f"{planned.repo} does not hold the files that were sent.", _AGAIN)
    return replace(planned, commit=remote.head if any(c.is_commit for c in changes) else "")


def _planned(
    repo: str, settings: SpaceSettings, token: str | None
) -> tuple[Deployment, list[_Change]]:
    _refuse_settings(settings)
    name = full_name_to_publish(repo, token, _SPACE)
    api, files = hub_api(token), space_files()
    with _explained(name, "Reading the Space"):
        remote = _read(api, name)
        label = _hardware_label(api, settings.hardware)
    if remote is None:
        changes = [_creation(api, name, settings, label), _first_commit(api, name, files)]
    else:
        _refuse_foreign(name, remote)
        changes = [
            *_commit(api, name, remote, files),
            *_settings(api, name, remote, settings, label),
        ]
    texts = tuple(change.text for change in changes)
    notes = tuple(_notes(remote, settings, files, has_changes=bool(changes)))
    return Deployment(name, page_of(name, _SPACE), texts, notes), changes


# What is refused before anything is asked


def _refuse_settings(settings: SpaceSettings) -> None:
    if settings.sleep_seconds is not None and settings.hardware == _FREE_HARDWARE:
        raise RequestError(
            f"sleep_seconds is {settings.sleep_seconds}, but {_FREE_HARDWARE} always sleeps after 48 hours.",
            "Leave it out, or choose other hardware.",
        )
    if settings.sleep_seconds is not None and settings.sleep_seconds < 300:
        raise RequestError(
            f"sleep_seconds is {settings.sleep_seconds}, less than building a Space takes.",
            "Give 300 or more.",
        )
    for name, value in settings.variables.items():
        _refuse_name(name)
        if value.startswith("hf_"):
            raise RequestError(
                f"The variable {name} holds a token, and everybody can read a variable.",
                "Make it a secret.",
            )
    for name in settings.secrets:
        _refuse_name(name)


def _refuse_name(name: str) -> None:
    if not _VARIABLE_NAME.fullmatch(name):
        raise RequestError(
            f"{name[:60]!r} cannot be the name of a variable.", "Use letters, digits and '_'."
        )


def _refuse_foreign(name: str, remote: _Remote) -> None:
    others = sorted(remote.files.keys() - _MADE_BY_THE_HUB)
    if others and _MARK not in remote.files:
        raise HubError(
            f"{name} is a Space with another app ({others[0]} and others).",
            "Choose another name: nothing in it was changed.",
        )


# What is there


def _read(api: HfApi, name: str) -> _Remote | None:
    """None: there is no such Space."""
    try:
        info = api.space_info(name)
    except RepositoryNotFoundError:
        return None
    runtime = api.get_space_runtime(name)
    tree = api.list_repo_tree(name, recursive=True, revision=info.sha, repo_type=_SPACE)
    return _Remote(
        head=info.sha or "",
        private=bool(info.private),
        files={entry.path: entry for entry in tree if isinstance(entry, RepoFile)},
        hardware=runtime.requested_hardware or runtime.hardware,
        sleep_seconds=runtime.sleep_time,
        volumes=tuple(runtime.volumes or ()),
        variables={key: v.value for key, v in api.get_space_variables(name).items()},
        secrets=frozenset(api.get_space_secrets(name)),
    )


def _hardware_label(api: HfApi, hardware: str | None) -> str:
    """The hardware with what it is and costs, as the Hub says today. Raises RequestError for a name that it lacks."""
    if hardware is None:
        return ""
    if hardware == _ZERO_GPU:  # not among what can be rented
        return f"{hardware} (ZeroGPU: runs in slices, of each visitor's daily quota)"
    offered = {item.name: item for item in api.list_spaces_hardware()}
    if hardware not in offered:
        known = [h.value for h in SpaceHardware if h.value in offered]
        raise RequestError(
            f"hardware is {hardware[:60]!r}, which the Hub does not offer.",
            f"Choose one of: {', '.join(known or sorted(offered))}.",
        )
    item = offered[hardware]
    hours = {"minute": 60, "hour": 1}.get(item.unit_label)
    if not item.unit_cost_usd or hours is None:
        return f"{hardware} ({item.pretty_name})"
    return f"{hardware} ({item.pretty_name}, {item.unit_cost_usd * hours:.2f} USD an hour)"


def _differing(remote: _Remote, files: Sequence[PublishedFile]) -> list[PublishedFile]:
    return [f for f in files if f.name not in remote.files or not f.is_same(remote.files[f.name])]


# What is to be done


def _creation(api: HfApi, name: str, settings: SpaceSettings, label: str) -> _Change:
    private = settings.private is not False
    kind = "private" if private else "public"
    parts = [f"on {label or _FREE_HARDWARE}"]
    if settings.sleep_seconds is not None:
        parts.append(f"asleep after {duration(settings.sleep_seconds)} without a visitor")
    parts += [f"with the variable {key}" for key in _variables(settings)]
    parts += [f"with the secret {key}" for key in settings.secrets]
    return _Change(
        f"Create the {kind} Space {name} {', '.join(parts)}.",
        lambda: api.create_repo(
            name,
            repo_type=_SPACE,
            space_sdk="gradio",
            private=private,
            space_hardware=cast(SpaceHardware | None, settings.hardware),
            space_sleep_time=settings.sleep_seconds,
            space_variables=[{"key": k, "value": v} for k, v in _variables(settings).items()],
            space_secrets=[{"key": k, "value": v} for k, v in settings.secrets.items()],
            space_volumes=[_volume(settings.bucket)] if settings.bucket else None,
        ),
    )


def _first_commit(api: HfApi, name: str, files: Sequence[PublishedFile]) -> _Change:
    operations = [CommitOperationAdd(f.name, f.source) for f in files]
    return _Change(
        f"Upload {_counted(files)} in one commit.",
        lambda: _push(api, name, operations, None),
        is_commit=True,
    )


def _commit(
    api: HfApi, name: str, remote: _Remote, files: Sequence[PublishedFile]
) -> Iterator[_Change]:
    """What turns the files there into these: files of the package that are no longer ours go, others stay."""
    new = _differing(remote, files)
    gone = sorted(n for n in _others(remote, files) if n.startswith(f"{PACKAGE_FOLDER}/"))
    if not new and not gone:
        return
    operations = [
        *(CommitOperationAdd(f.name, f.source) for f in new),
        *(CommitOperationDelete(path) for path in gone),
    ]
    parts = [f"upload {_counted(new)}"] if new else []
    parts += [f"delete {counted(len(gone), 'file')} of another version"] if gone else []
    text = f"{' and '.join(parts)} in one commit.".capitalize()
    yield _Change(text, lambda: _push(api, name, operations, remote.head), is_commit=True)


def _push(api: HfApi, name: str, operations: Sequence, parent: str | None) -> None:
    api.create_commit(
        name,
        list(operations),
        commit_message="Deploy qlora_space",
        repo_type=_SPACE,
        parent_commit=parent,
    )


def _settings(
    api: HfApi, name: str, remote: _Remote, settings: SpaceSettings, label: str
) -> Iterator[_Change]:
    """One change for each setting that differs."""
    private, hardware, sleep = settings.private, settings.hardware, settings.sleep_seconds
    if private is not None and private != remote.private:
        yield _Change(
            f"Make the Space {'private' if private else 'public'}.",
            lambda: api.update_repo_settings(name, private=private, repo_type=_SPACE),
        )
    for key, value in _variables(settings).items():
        if remote.variables.get(key) != value:
            yield _Change(
                f"Set the variable {key}.", _bound(api.add_space_variable, name, key, value)
            )
    for key, value in settings.secrets.items():
        if key not in remote.secrets:
            yield _Change(f"Set the secret {key}.", _bound(api.add_space_secret, name, key, value))
    if settings.bucket and _volume(settings.bucket) not in remote.volumes:
        kept = [v for v in remote.volumes if v.mount_path != BUCKET_FOLDER]
        volumes = [*kept, _volume(settings.bucket)]
        yield _Change(
            f"Mount the bucket {settings.bucket} at {BUCKET_FOLDER}.",
            lambda: api.set_space_volumes(name, volumes),
        )
    if hardware is not None and hardware != remote.hardware:
        yield _Change(
            f"Change the hardware from {remote.hardware or 'none'} to {label}.",
            lambda: api.request_space_hardware(name, cast(SpaceHardware, hardware)),
        )
    if sleep is not None and sleep != remote.sleep_seconds:
        yield _Change(
            f"Let the Space sleep after {duration(sleep)} without a visitor.",
            lambda: api.set_space_sleep_time(name, sleep),
        )


def _bound(call: Callable[..., object], *arguments: str) -> Callable[[], object]:
    return lambda: call(*arguments)


def _variables(settings: SpaceSettings) -> dict[str, str]:
    """A mounted bucket is where the runs are kept."""
    home = {_HOME_VARIABLE: BUCKET_FOLDER} if settings.bucket else {}
    return {**home, **settings.variables}


def _volume(bucket: str) -> Volume:
    return Volume(type="bucket", source=bucket, mount_path=BUCKET_FOLDER)


def _others(remote: _Remote, files: Sequence[PublishedFile]) -> set[str]:
    return remote.files.keys() - {f.name for f in files} - _MADE_BY_THE_HUB


def _counted(files: Sequence[PublishedFile]) -> str:
    mib = sum(f.num_bytes for f in files) / 2**20
    return f"{counted(len(files), 'file')} ({mib:.1f} MiB)"


def _notes(
    remote: _Remote | None,
    settings: SpaceSettings,
    files: Sequence[PublishedFile],
    has_changes: bool,
) -> Iterator[str]:
    """What the owner should know, and nothing that is to be done."""
    hardware = settings.hardware or (remote.hardware if remote else None) or _FREE_HARDWARE
    sleep = settings.sleep_seconds or (remote.sleep_seconds if remote else None)
    if hardware.startswith("cpu-"):
        yield f"{hardware} has no GPU: enough for the demo. l4x1 trains bases of up to 14B."
    if hardware == _ZERO_GPU:
        yield "Nothing is billed: a visitor has some minutes of a GPU a day, free accounts about 5, PRO 40."
    elif hardware != _FREE_HARDWARE:
        yield (
            f"The Space sleeps after {duration(sleep)} without a visitor, and a run that is still training then stops."
            if sleep
            else "It is billed until you pause it: --sleep-seconds lets it sleep when nobody comes."
        )
    if not (settings.bucket or (remote and remote.volumes)):
        yield "Its disk is lost when it restarts: publish adapters, or mirror runs."
    if remote is None:
        return
    if has_changes:
        yield "A change restarts the Space: runs that are training there stop."
    if there := sorted(settings.secrets.keys() & remote.secrets):
        yield f"Kept as they are, for a secret cannot be read: {', '.join(there)}."
    stays = sorted(n for n in _others(remote, files) if not n.startswith(f"{PACKAGE_FOLDER}/"))
    if stays:
        yield f"Not ours, and left alone: {', '.join(stays[:5])}{', ...' if stays[5:] else ''}"


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn the client's errors into one sentence. Raises HubError."""
    try:
        yield
    except (*CLIENT_ERRORS, RuntimeError) as raised:
        error = client_error(raised)
        status = status_of(error)
        if status == _PAYMENT_REQUIRED:
            raise HubError(
                f"{name}: the Hub wants a paid plan or a payment method for this hardware.",
                "Creating Spaces with a CPU or GPU of their own needs PRO, Team or Enterprise "
                "(a free account may have 2 ZeroGPU Spaces, zero-a10g, where runs train in slices of a daily quota).",
            ) from None
        if status == _PRECONDITION_FAILED:
            raise HubError(f"{name} was changed by somebody else meanwhile.", _AGAIN) from None
        raise hub_error(error, f"{name}: {what.rstrip('.')} failed", _AGAIN) from None
