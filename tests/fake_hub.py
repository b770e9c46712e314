"""A Hub on loopback that real clients cannot distinguish from the real one, with faults on demand.

    with FakeHub() as hub:          # or: python -m tests.fake_hub --port 8090
        hub.add_model("alice/base", folder)
        hub.fail(503, path="/commit/", nth=1)

Covers what huggingface_hub, datasets, transformers and peft ask for when they read, create and push
repositories through classic LFS. Clients freeze HF_ENDPOINT at import: set it first (conftest.py).
"""

import argparse
import asyncio
import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.fake_jobs import Job, JobsApi
from tests.fake_openid import OpenIdProvider
from tests.fake_spaces import HARDWARE, SpaceState

RepoType = Literal["model", "dataset", "space"]
FaultKind = int | Literal["drop", "lose", "cut", "stall"]
ONLOOKER = (
    "onlooker"  # the user agent of who only watches: no fault is for it, and it is not recorded
)
Files = Path | Mapping[str, bytes | str]

ALICE = "hf_aliceWriteTokenForTestsOnly"
BOB = "hf_bobReadTokenForTestsOnly"
CAROL = "hf_carolFineGrainedForTestsOnly"

_TYPES: dict[str, RepoType] = {"models": "model", "datasets": "dataset", "spaces": "space"}
_LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".parquet", ".arrow", ".gz", ".zip")
_OF_CONFIG = ("architectures", "model_type", "quantization_config")  # what the Hub tells of it
_IGNORED_FILTERS = {"text-generation", "safetensors"}  # of what a repository holds, not its tags
_LFS_BYTES = 10 * 2**20


@dataclass(frozen=True)
class User:
    """The owner of a token. `permissions` matter for fine-grained tokens only."""

    name: str
    role: Literal["read", "write", "fineGrained"]
    orgs: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    orgs_to_read: tuple[str, ...] = ()
    scopes: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # by type, name
    may_run_jobs: bool = True

    @property
    def can_write(self) -> bool:
        scoped = (p for permissions in self.scopes.values() for p in permissions)
        return self.role == "write" or "repo.write" in (*self.permissions, *scoped)

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class StoredFile:
    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    message: str
    files: Mapping[str, StoredFile]
    time: datetime


@dataclass
class Repo:
    """A repository with its whole history; every commit keeps serving its own state."""

    type: RepoType
    id: str
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)
    downloads: int = 0
    space: SpaceState = field(default_factory=SpaceState)
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: file.data for path, file in self.head.files.items()}

    def at(self, revision: str) -> Commit | None:
        if revision in ("main", "refs/heads/main", "HEAD"):
            return self.head
        return next((c for c in self.commits if c.sha == revision), None)

    def commit(self, files: Mapping[str, StoredFile], title: str, message: str = "") -> Commit:
        made = Commit(secrets.token_hex(20), title, message, dict(files), datetime.now(UTC))
        self.commits.append(made)
        return made


@dataclass
class Fault:
    """Applies to the matching requests number nth to nth + times - 1, counted from 1."""

    kind: FaultKind
    path: str
    method: str
    nth: int
    times: int
    headers: dict[str, str]
    seen: int = 0

    def takes(self, method: str, path: str) -> bool:
        if (self.method and method != self.method) or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass(frozen=True)
class Seen:
    """One request. `user` is '' for an anonymous one and '?' for an unknown token."""

    method: str
    path: str
    query: str
    user: str


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class FakeHub:
    """State, faults and the server. Not started until entered or start() is called."""

    def __init__(self, port: int = 0) -> None:
        # asyncio turns Nagle's delay of 40 ms off only where the protocol is named.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(_Faulty(self, _app(self)), log_level="error", lifespan="off")
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )
        self.reset()

    def reset(self) -> None:
        """Forget repositories, uploads, faults, requests and accepted terms; the users stay."""
        self.users: dict[str, User] = {
            ALICE: User("alice", "write", orgs=("wonderland",)),
            BOB: User("bob", "read"),
            CAROL: User(
                "carol", "fineGrained", permissions=("repo.content.read",), may_run_jobs=False
            ),
        }
        self.repos: dict[tuple[RepoType, str], Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Seen] = []
        self.unhandled: list[str] = []
        self.jobs: dict[str, Job] = {}
        self.job_credit = True
        self.job_runner: Callable[[Job], None] | None = None  # starts what was submitted
        self.log_drops: list[int] = []  # a log breaks off once after so many lines
        self.gpu_quota: dict[str, tuple[float, float]] = {}  # of a user: a day's seconds, and left
        self.signs_in_as = ALICE  # by a Space's sign-in button
        self.sign_in_seconds = 8 * 3600

    def start(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def add_model(
        self, repo_id: str, files: Files, *, private: bool = False, gated: bool = False
    ) -> Repo:
        return self._add("model", repo_id, files, private, gated)

    def add_dataset(
        self, repo_id: str, files: Files, *, private: bool = False, gated: bool = False
    ) -> Repo:
        """Configs and splits come from the README's YAML or from the file names, as on the Hub."""
        return self._add("dataset", repo_id, files, private, gated)

    def add_space(self, repo_id: str, files: Files, *, private: bool = False) -> Repo:
        return self._add("space", repo_id, files, private, gated=False)

    def repo(self, repo_type: RepoType, repo_id: str) -> Repo:
        return self.repos[repo_type, repo_id]

    def fail(
        self,
        kind: FaultKind,
        *,
        path: str = "",
        method: str = "",
        nth: int = 1,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Let matching requests fail: with a status, 'drop' (reset, nothing done), 'lose' (done, but no answer), 'cut'
        (done, but only half of the answer's body comes), or 'stall' (nothing happens until the client gives up).

        `path` is a regular expression.
        """
        self.faults.append(Fault(kind, path, method, nth, times, dict(headers or {})))

    def _add(
        self, repo_type: RepoType, repo_id: str, files: Files, private: bool, gated: bool
    ) -> Repo:
        repo = Repo(repo_type, repo_id, private, gated)
        repo.commit({path: _stored(path, data) for path, data in _contents(files)}, "Add files")
        self.repos[repo_type, repo_id] = repo
        return repo

    def user_of(self, request: Request) -> User | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def find(self, request: Request) -> Repo:
        """The requested repository, if the user may see it."""
        user = self.user_of(request)
        params = request.path_params
        repo_type = _TYPES[params.get("t", "models")]
        repo = self.repos.get((repo_type, f"{params['ns']}/{params['name']}"))
        if repo is None or (repo.private and not (user and user.owns(repo.id))):
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repo

    def find_commit(self, request: Request) -> tuple[Repo, Commit]:
        repo = self.find(request)
        commit = repo.at(request.path_params.get("rev", "main"))
        if commit is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return repo, commit

    def require_terms(self, request: Request, repo: Repo) -> None:
        user = self.user_of(request)
        if not repo.gated or (user and (user.owns(repo.id) or user.name in repo.accepted)):
            return
        if user is None:
            raise Refusal(401, f"Access to model {repo.id} is restricted.", "GatedRepo")
        raise Refusal(403, f"Access to model {repo.id} is restricted.", "GatedRepo")

    def require_write(self, request: Request, repo_id: str) -> None:
        user = self.user_of(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if not user.can_write:
            raise Refusal(403, "You don't have the required permissions: use a write token.")
        if not user.owns(repo_id):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}.")


def _contents(files: Files) -> Iterator[tuple[str, bytes]]:
    if isinstance(files, Path):
        for path in sorted(p for p in files.rglob("*") if p.is_file()):
            yield path.relative_to(files).as_posix(), path.read_bytes()
        return
    for name, data in files.items():
        yield name, data.encode() if isinstance(data, str) else data


def _uses_lfs(path: str, size: int) -> bool:
    return size > 0 and (size > _LFS_BYTES or path.endswith(_LFS_SUFFIXES))


def _stored(path: str, data: bytes) -> StoredFile:
    return StoredFile(data, _uses_lfs(path, len(data)))


class _Faulty:
    """Middleware that records every request and applies the faults."""

    def __init__(self, hub: FakeHub, app: ASGIApp) -> None:
        self._hub, self._app = hub, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        if request.headers.get("user-agent") == ONLOOKER:
            await self._app(scope, receive, send)
            return
        self._hub.requests.append(_seen(self._hub, request))
        takers = [f for f in self._hub.faults if f.takes(request.method, request.url.path)]
        if not takers or (takers[0].kind == "cut" and request.method == "HEAD"):
            await self._app(scope, receive, send)
        elif isinstance(takers[0].kind, int):
            answer = JSONResponse({"error": "fault on demand"}, takers[0].kind, takers[0].headers)
            await answer(scope, receive, send)
        elif takers[0].kind == "stall":
            await _wait_for_the_end(receive)
        else:
            if takers[0].kind == "lose":
                await self._app(scope, receive, _into_the_void)
            if takers[0].kind == "cut":
                await self._app(scope, receive, _Halved(send))
            await _hang_up(send)


async def _into_the_void(message: Any) -> None:
    """Swallows an answer."""


class _Halved:
    """Sends an answer whose length is promised and half of whose body comes."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message["headers"] if k.lower() != b"content-length"]
            await self._send({**message, "headers": [*kept, (b"content-length", b"100000")]})
        elif body := message.get("body", b""):
            await self._send({**message, "body": body[: len(body) // 2], "more_body": True})
            await asyncio.sleep(0.002)  # it leaves before the connection does


async def _wait_for_the_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _hang_up(send: Send) -> None:
    # ASGI cannot abort a connection; uvicorn 0.54 binds `send` to the object that holds the connection.
    send.__self__.transport.abort()  # type: ignore[attr-defined]
    await asyncio.sleep(0.002)


def _seen(hub: FakeHub, request: Request) -> Seen:
    token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    user = hub.users[token].name if token in hub.users else ("?" if token else "")
    return Seen(request.method, request.url.path, request.url.query, user)


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {"X-Error-Message": error.message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, headers=headers)


def _entry(path: str, file: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(file.data),
        "oid": file.blob_id,
    }
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
    return entry


def _sibling(path: str, file: StoredFile, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {
        "rfilename": path,
        "size": len(file.data),
        "blobId": file.blob_id,
    }
    if file.is_lfs:
        sibling["lfs"] = {"sha256": file.sha256, "size": len(file.data), "pointerSize": 130}
    return sibling


def _card(commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    match = re.match(r"---\n(.*?)\n---", readme.data.decode(), re.S) if readme else None
    return (yaml.safe_load(match[1]) or {}) if match else {}


def _safetensors(commit: Commit) -> dict[str, Any] | None:
    counts: dict[str, int] = {}
    for path, file in commit.files.items():
        if not path.endswith(".safetensors"):
            continue
        try:
            header = json.loads(file.data[8 : 8 + int.from_bytes(file.data[:8], "little")])
        except ValueError:
            continue
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + prod(tensor["shape"])
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def _config(commit: Commit) -> dict[str, Any] | None:
    file = commit.files.get("config.json")
    try:
        config = json.loads(file.data) if file else None
    except ValueError:
        return None
    if not isinstance(config, dict):
        return None
    return {key: config[key] for key in _OF_CONFIG if key in config}


def _info(repo: Repo, commit: Commit, with_blobs: bool = False) -> dict[str, Any]:
    card = _card(commit)
    license_name = card.get("license")
    return {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.sha,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": 0,
        "tags": [*card.get("tags", []), *([f"license:{license_name}"] if license_name else [])],
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "config": _config(commit) if repo.type == "model" else None,
        "safetensors": _safetensors(commit) if repo.type == "model" else None,
        "siblings": [_sibling(p, f, with_blobs) for p, f in commit.files.items()],
        "createdAt": _time(repo.commits[0]),
        "lastModified": _time(commit),
    }


def _time(commit: Commit) -> str:
    return commit.time.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _expanded(info: dict[str, Any], request: Request) -> dict[str, Any]:
    query = request.query_params
    wanted = {*query.getlist("expand"), *query.getlist("expand[]")}
    if not wanted:
        return info
    return {k: v for k, v in info.items() if k in wanted | {"_id", "id", "modelId"}}


class _Api:
    """The routes, one method each."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub

    async def gpu_quota(self, request: Request) -> Response:
        """For tokens with the scope read-billing, which here are those whose user has an entry."""
        user = self.hub.user_of(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user.name not in self.hub.gpu_quota:
            raise Refusal(403, "This token has no scope read-billing.")
        base, left = self.hub.gpu_quota[user.name]
        found = {"base": base, "current": left, "resetsAt": None, "overquotaUsed": 0}
        return JSONResponse(found)

    async def whoami(self, request: Request) -> Response:
        user = self.hub.user_of(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": user.role}
        if user.role == "fineGrained":
            entity = {"type": "user", "name": user.name}
            scoped = [{"entity": entity, "permissions": list(user.permissions)}]
            scoped += [
                {"entity": {"type": kind, "name": name}, "permissions": list(permissions)}
                for (kind, name), permissions in user.scopes.items()
            ]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        roles = [(org, "write") for org in user.orgs] + [(o, "read") for o in user.orgs_to_read]
        orgs = [{"type": "org", "name": org, "roleInOrg": role} for org, role in roles]
        return JSONResponse(
            {
                "type": "user",
                "id": user.name,
                "name": user.name,
                "fullname": user.name.title(),
                "isPro": False,
                "canPay": False,
                "avatarUrl": "/avatar.png",
                "orgs": orgs,
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    async def create(self, request: Request) -> Response:
        body = await request.json()
        user = self.hub.user_of(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{body.get('organization') or user.name}/{body['name']}"
        repo_type: RepoType = body.get("type") or "model"
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        url = f"{self.hub.url}/{prefix}{repo_id}"
        self.hub.require_write(request, repo_id)
        if (repo_type, repo_id) in self.hub.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        is_private = body.get("visibility") == "private" or bool(body.get("private"))
        repo = Repo(repo_type, repo_id, private=is_private)
        if repo_type == "space":
            repo.space = SpaceState.created(body)
        attributes = StoredFile(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)
        repo.commit({".gitattributes": attributes}, "initial commit")
        self.hub.repos[repo_type, repo_id] = repo
        return JSONResponse({"url": url, "name": repo_id, "id": repo_id})

    async def settings(self, request: Request) -> Response:
        repo = self.hub.find(request)
        self.hub.require_write(request, repo.id)
        body = await request.json()
        repo.private = body["visibility"] == "private"
        return JSONResponse({"private": repo.private})

    async def space_hardware(self, request: Request) -> Response:
        return JSONResponse(list(HARDWARE))

    async def space_runtime(self, request: Request) -> Response:
        return JSONResponse(self.hub.find(request).space.runtime())

    async def space_setting(self, request: Request) -> Response:
        """Read variables and secrets, or set one thing."""
        repo, kind = self.hub.find(request), request.url.path.rsplit("/", 1)[1]
        self.hub.require_write(request, repo.id)
        if request.method == "GET":
            return JSONResponse(repo.space.named(kind))
        repo.space.set(kind, await request.json())
        if kind in ("variables", "secrets"):
            return JSONResponse(repo.space.named(kind))
        return JSONResponse(repo.space.runtime())

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        match = re.match(r"---\n(.*?)\n---", content, re.S)
        try:
            yaml.safe_load(match[1] if match else "")
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def info(self, request: Request) -> Response:
        repo, commit = self.hub.find_commit(request)
        with_blobs = "blobs" in request.query_params
        return JSONResponse(_expanded(_info(repo, commit, with_blobs), request))

    async def listing(self, request: Request) -> Response:
        if request.path_params["t"] not in _TYPES:
            return await self.unknown(request)
        user = self.hub.user_of(request)
        query = request.query_params
        found = [
            repo
            for (repo_type, repo_id), repo in self.hub.repos.items()
            if repo_type == _TYPES[request.path_params["t"]]
            and query.get("search", "").lower() in repo_id.lower()
            and (not repo.private or (user and user.owns(repo_id)))
            and query.get("author", repo_id.split("/")[0]) == repo_id.split("/")[0]
            and {*query.getlist("filter")} - _IGNORED_FILTERS <= {*_info(repo, repo.head)["tags"]}
        ]
        found.sort(key=lambda repo: -repo.downloads)
        limit = int(query.get("limit", 1000))
        return JSONResponse([_expanded(_info(r, r.head), request) for r in found[:limit]])

    async def tree(self, request: Request) -> Response:
        repo, commit = self.hub.find_commit(request)
        folder = request.path_params.get("path", "").strip("/")
        prefix = f"{folder}/" if folder else ""
        inside = {p: f for p, f in commit.files.items() if p.startswith(prefix)}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {repo.id}", "EntryNotFound")
        start = len(prefix)
        folders = sorted({p[: p.index("/", start)] for p in inside if "/" in p[start:]})
        entries = [{"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders]
        is_recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
        for path, file in inside.items():
            if is_recursive or "/" not in path[start:]:
                entries.append(_entry(path, file))
        return JSONResponse(entries)

    async def paths_info(self, request: Request) -> Response:
        _, commit = self.hub.find_commit(request)
        if "json" in request.headers.get("content-type", ""):
            paths = (await request.json())["paths"]
        else:
            paths = [str(path) for path in (await request.form()).getlist("paths")]
        found: list[dict[str, Any]] = [
            _entry(path, commit.files[path]) for path in paths if path in commit.files
        ]
        found += [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            for path in paths
            if any(name.startswith(f"{path}/") for name in commit.files)
        ]
        return JSONResponse(found)

    async def commits(self, request: Request) -> Response:
        repo, last = self.hub.find_commit(request)
        history = repo.commits[: repo.commits.index(last) + 1]
        return JSONResponse(
            [
                {
                    "id": c.sha,
                    "title": c.title,
                    "message": c.message,
                    "date": _time(c),
                    "authors": [{"user": "someone"}],
                }
                for c in reversed(history)
            ]
        )

    async def auth_check(self, request: Request) -> Response:
        self.hub.require_terms(request, self.hub.find(request))
        return JSONResponse({})

    async def auth_check_write(self, request: Request) -> Response:
        repo = self.hub.find(request)
        self.hub.require_write(request, repo.id)
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        repo, commit = self.hub.find_commit(request)
        self.hub.require_write(request, repo.id)
        answer = []
        for file in (await request.json())["files"]:
            path, known = file["path"], commit.files.get(file["path"])
            mode = "lfs" if _uses_lfs(path, file["size"]) else "regular"
            oid = known.oid if known else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": answer})

    async def lfs_batch(self, request: Request) -> Response:
        repo = self.hub.find(request)
        self.hub.require_write(request, repo.id)
        answer = []
        for wanted in (await request.json())["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.uploads:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wanted['oid']}"}}
            answer.append(entry)
        return JSONResponse({"transfer": "basic", "objects": answer})

    async def lfs_put(self, request: Request) -> Response:
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != request.path_params["oid"]:
            raise Refusal(400, "The content does not have this hash.")
        self.hub.uploads[request.path_params["oid"]] = data
        return Response(status_code=200)

    async def commit(self, request: Request) -> Response:
        repo = self.hub.find(request)
        self.hub.require_write(request, repo.id)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head.sha):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.head.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        made = repo.commit(files, header["summary"], header.get("description", ""))
        return JSONResponse(
            {
                "success": True,
                "commitOid": made.sha,
                "commitUrl": f"{self.hub.url}/{repo.id}/commit/{made.sha}",
                "hookOutput": "",
            }
        )

    def _apply(self, files: dict[str, StoredFile], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = StoredFile(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.uploads:
                raise Refusal(400, f"The LFS object of {path} was never uploaded.")
            files[path] = StoredFile(self.hub.uploads[value["oid"]], True)
        elif key == "deletedFile":
            files.pop(path, None)
        elif key == "deletedFolder":
            for name in [n for n in files if n.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise Refusal(400, f"Unknown operation {key}.")

    async def resolve(self, request: Request) -> Response:
        repo, commit = self.hub.find_commit(request)
        self.hub.require_terms(request, repo)
        file = commit.files.get(request.path_params["path"])
        headers = {"X-Repo-Commit": commit.sha}
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return Response(status_code=404, headers=headers)
        headers |= {"ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            size = str(len(file.data))
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": size}
        data, status = file.data, 200
        if wanted := re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            if first >= len(data):
                return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
            last = min(last, len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        headers["Content-Length"] = str(len(data))
        body = b"" if request.method == "HEAD" else data
        return Response(body, status, headers, media_type="application/octet-stream")

    async def unknown(self, request: Request) -> Response:
        path = request.url.path
        self.hub.unhandled.append(f"{request.method} {path}")
        is_repo = re.match(r"/api/(models|datasets|spaces)/|.*/resolve/", path)
        raise Refusal(404, "Not found", "RepoNotFound" if is_repo else "")


def _app(hub: FakeHub) -> Starlette:
    api = _Api(hub)
    one = "/api/{t}/{ns}/{name}"
    read = ["GET", "HEAD"]
    routes = [
        *OpenIdProvider(hub).routes(),
        *JobsApi(hub, Refusal).routes(),
        Route("/api/whoami-v2", api.whoami),
        Route("/api/repos/create", api.create, methods=["POST"]),
        Route("/api/validate-yaml", api.validate_yaml, methods=["POST"]),
        Route("/api/spaces/hardware", api.space_hardware),
        Route("/api/spaces/zero-gpu/quota", api.gpu_quota),
        Route(one + "/settings", api.settings, methods=["PUT"]),
        Route(one + "/runtime", api.space_runtime),
        Route(one + "/preupload/{rev}", api.preupload, methods=["POST"]),
        Route(one + "/commit/{rev}", api.commit, methods=["POST"]),
        Route(one + "/tree/{rev}", api.tree),
        Route(one + "/tree/{rev}/{path:path}", api.tree),
        Route(one + "/paths-info/{rev}", api.paths_info, methods=["POST"]),
        Route(one + "/commits/{rev}", api.commits),
        Route(one + "/auth-check", api.auth_check),
        Route(one + "/auth-check/write", api.auth_check_write),
        Route(one + "/revision/{rev}", api.info),
        Route(one, api.info),
        *(
            Route(f"{one}/{kind}", api.space_setting, methods=["GET", "POST", "PUT"])
            for kind in ("hardware", "sleeptime", "volumes", "variables", "secrets")
        ),
        Route("/api/{t}", api.listing),
        Route("/_lfs/{oid}", api.lfs_put, methods=["PUT"]),
    ]
    for prefix in ("", "/{t}"):
        batch = prefix + "/{ns}/{name}.git/info/lfs/objects/batch"
        routes.append(Route(batch, api.lfs_batch, methods=["POST"]))
    for prefix in ("", "/{t}"):
        path = prefix + "/{ns}/{name}/resolve/{rev}/{path:path}"
        routes.append(Route(path, api.resolve, methods=read))
    routes.append(Route("/{path:path}", api.unknown, methods=[*read, "POST", "PUT", "DELETE"]))
    return Starlette(routes=routes, exception_handlers={Refusal: _refuse})


def main() -> None:
    """Serve an empty Hub, or one with the folders given, until interrupted."""
    parser = argparse.ArgumentParser(description="A fake Hub on loopback.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], metavar="ID=FOLDER")
    parser.add_argument("--dataset", action="append", default=[], metavar="ID=FOLDER")
    options = parser.parse_args()
    with FakeHub(options.port) as hub:
        for add, pairs in ((hub.add_model, options.model), (hub.add_dataset, options.dataset)):
            for pair in pairs:
                repo_id, folder = pair.split("=", 1)
                add(repo_id, Path(folder))
        print(hub.url, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
