"""A token is nowhere but in memory, whatever fails: looked for on disk, in logs, in the arguments and environment of
every process, in pages, schemas and streams, after every way in which a job can end.

Both tokens are canaries: the visitor's, and the one that whoever runs the server has set in its environment, which the
server's own process has and no other.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.fake_hub import FakeHub, User
from tests.space import SpaceVisitor, free_port, running_app
from tests.train.small import tiny_base

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
OWNERS = "hf_canaryOfTheServerForTestsOnly"
VISITORS = "hf_oauth_eyJhbGci.canary-of_the-Visitor.ForTests-only"  # as a sign-in gives them
RENEWED = "hf_oauth_eyJhbGci.canary-of_the-Second.ForTests-only"  # by a later sign-in
QUICK = {
    "base": "alice/tiny", "dataset": "alice/rows", "max_steps": 2, "max_rows": 30, "max_length": 128,
    "num_samples": 0, "eval_fraction": 0.0, "packing": False,
}  # fmt: skip
ENDLESS = QUICK | {"max_steps": 5000}


def _ways_to_write(token: str) -> list[bytes]:
    """As it is, and inside base64 wherever it begins there."""
    encoded = (base64.b64encode(b" " * shift + token.encode()) for shift in range(3))
    return [token.encode(), *(text[4:-4] for text in encoded)]


NEEDLES = [way for token in (VISITORS, RENEWED, OWNERS) for way in _ways_to_write(token)]


def holds_a_token(data: bytes) -> bool:
    return any(needle in data for needle in NEEDLES)


@dataclass
class ProcessWatch:
    """Looks into the arguments and environment of every process that has `home` in them, until it is left."""

    home: Path
    seen: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(0.02):
            for pid in filter(str.isdecimal, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    self._look(Path("/proc", pid))

    def _look(self, process: Path) -> None:
        arguments, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        if str(self.home).encode() not in arguments + environment:
            return
        name = arguments.replace(b"\0", b" ").decode(errors="replace").strip()
        self.seen.add(name)
        if holds_a_token(arguments):
            self.found.add(f"arguments of {name}")
        if holds_a_token(environment):
            self.found.add(f"environment of {name}")

    def pids(self, words: str) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if (
                    words in arguments
                    and str(self.home).encode() in (process / "environ").read_bytes()
                ):
                    found.append(int(process.name))
        return found


@dataclass
class Place:
    """A running server, somebody who uses it, and all that it said."""

    url: str
    hub: FakeHub
    home: Path
    visitor: SpaceVisitor
    processes: ProcessWatch
    said: list[str] = field(default_factory=list)

    def call(self, name: str, *values: Any) -> Any:
        answer = self.visitor.call(name, *values)
        self.said.append(json.dumps(answer))
        return answer

    def refused(self, name: str, *values: Any) -> None:
        with pytest.raises(RuntimeError) as refused:
            self.call(name, *values)
        self.said.append(str(refused.value))

    def wait(self, run_id: str, *kinds: str) -> None:
        """For an event of one of these kinds."""
        deadline = time.monotonic() + 300
        while not (kinds_seen := {event["kind"] for event in self.call("events", run_id, 0)}) & {
            *kinds
        }:
            assert time.monotonic() < deadline, self.said[-1]
            assert "failed" not in kinds_seen, self.said[-1]
            # Whoever looks notices a dead worker.
            self.said.append(self.visitor.request("GET", "/runs/list.json").text)
            time.sleep(0.2)

    def breaks(self, kind: Any, path: str = "") -> None:
        """From now on, and with the token in the answer: some proxies echo what they were sent."""
        self.hub.faults.clear()
        echo = {"X-Error-Message": f"bad token {VISITORS}", "X-Request-Id": VISITORS}
        self.hub.fail(kind, path=path, times=9999, headers=echo)


@pytest.fixture(params=["a Space", pytest.param("a machine of one's own", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    is_space = request.param == "a Space"
    home, port = tmp_path / "home", free_port()
    with FakeHub() as hub:
        for token in (VISITORS, OWNERS):
            hub.users[token] = User("alice", "write")
        hub.signs_in_as = VISITORS
        hub.add_model("alice/tiny", tiny_base(), private=True)
        rows = ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(40))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        hub.add_dataset("alice/rows", {"train.jsonl": lines}, private=True)
        hub.add_dataset("alice/bad", {"train.jsonl": '{"prompt": "a"\n' * 9}, private=True)
        with running_app(
            sys.executable, ROOT, home, port, _variables(hub, home, port, is_space)
        ) as url:
            visitor = SpaceVisitor(url)
            if is_space:
                visitor.sign_in()
            with ProcessWatch(home) as processes:
                yield Place(url, hub, home, visitor, processes)


def _variables(hub: FakeHub, home: Path, port: int, is_space: bool) -> dict[str, str]:
    from tests.fake_openid import space_environment

    for name in ("tmp", "hf"):
        (home / name).mkdir(parents=True)
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": VISITORS}
    platform = space_environment(hub, "alice/app", port) | {"HF_TOKEN": OWNERS}
    here = {"TMPDIR": str(home / "tmp"), "HF_HOME": str(home / "hf")}
    return here | (platform if is_space else own) | {"QLORA_SPACE_MIN_FREE_GIB": "0"}


def test_a_token_is_nowhere_but_in_memory_whatever_fails(place: Place) -> None:
    done = _train_with_a_mirror_and_a_push_that_fail(place)
    place.call("compare", done, "Hello", "", {"max_new_tokens": 2}, None)
    _publish(place, done)
    _kill_a_worker_and_cancel_a_run(place)
    _inspect_what_fails(place)
    if place.visitor.cookie:  # on a Space there is no command line
        _sign_in_anew_while_it_trains(place)
    else:
        _deploy(place)
    place.hub.faults.clear()
    _read_all_pages(place, done)

    assert not [text for text in place.said if holds_a_token(text.encode())]
    files = [file for file in place.home.rglob("*") if file.is_file()]
    assert len(files) > 40
    assert not [file for file in files if holds_a_token(file.read_bytes())]
    for repo in place.hub.repos.values():
        assert not [name for name, data in repo.files.items() if holds_a_token(data)], repo.id
    seen = "\n".join(place.processes.seen)
    assert all(words in seen for words in ("worker train", "worker inspect", "worker compare")), (
        seen
    )
    server = f"{sys.executable} app.py"  # whoever runs it has set the variable
    allowed = {f"environment of {server}"} | {
        f"environment of {name}" for name in place.processes.seen if " deploy " in name
    }
    assert place.processes.found <= allowed
    assert f"environment of {server}" in place.processes.found, "the watch sees"


def _train_with_a_mirror_and_a_push_that_fail(place: Place) -> str:
    """The run itself succeeds."""
    run_id = place.call(
        "start", QUICK | {"mirror_to": "alice/mirror", "hub_model_id": "alice/pushed"}
    )["run_id"]
    place.breaks(403, path="/api/models/alice/(mirror|pushed)/|/repos/create")
    place.wait(run_id, "finished")
    notes = [e["text"] for e in place.call("events", run_id, 0) if e["kind"] == "note"]
    assert any("ublish" in text for text in notes), notes
    place.hub.faults.clear()
    return run_id


def _publish(place: Place, run_id: str) -> None:
    """Refused, in the middle of a push, while the Hub is dead; then as it should be."""
    place.breaks(403)
    place.refused("publish", run_id, "alice/refused", True, None)
    place.breaks(401, path="/commit/")
    place.refused("publish", run_id, "alice/expired", True, None)
    place.breaks("drop")
    place.refused("publish", run_id, "alice/dead", True, None)
    place.hub.faults.clear()
    place.call("publish", run_id, "alice/good", True, None)


def _kill_a_worker_and_cancel_a_run(place: Place) -> None:
    killed = place.call("start", ENDLESS)["run_id"]
    cancelled = place.call("start", ENDLESS | {"seed": 1})["run_id"]
    place.wait(killed, "metric")
    for pid in place.processes.pids(killed):
        os.kill(pid, signal.SIGKILL)
    place.wait(killed, "failed")
    place.wait(cancelled, "phase")
    place.call("stop", cancelled, False)
    place.wait(cancelled, "cancelled")


def _inspect_what_fails(place: Place) -> None:
    place.refused("inspect", QUICK | {"dataset": "alice/nothing"})
    place.refused("plan", QUICK | {"dataset": "alice/bad"})
    place.breaks("drop")
    place.refused("inspect", QUICK | {"dataset": "alice/away"})
    place.breaks(500)
    place.refused("inspect", QUICK | {"base": "alice/away"})
    place.hub.faults.clear()
    killer = threading.Timer(0.3, lambda: _kill(place.processes.pids("worker inspect")))
    killer.start()
    with contextlib.suppress(RuntimeError):
        place.call("inspect", QUICK | {"max_rows": 20})
    killer.join()
    place.call("inspect", QUICK | {"max_rows": 19})  # with a new one


def _sign_in_anew_while_it_trains(place: Place) -> None:
    """The first sign-in ends before the first copy, and the copy goes on with the second."""
    place.hub.users[RENEWED] = place.hub.users[VISITORS]
    request = ENDLESS | {
        "base": "demo",
        "dataset": "demo",
        "save_steps": 1,
        "mirror_to": "alice/long",
    }
    run_id = place.call("start", request)["run_id"]
    del place.hub.users[VISITORS]
    _wait_for_note(place, run_id, "Sign in again")
    place.hub.signs_in_as = RENEWED
    place.visitor.sign_in()
    config = place.visitor.request("GET", "/config").json()
    (opened,) = (d["id"] for d in config["dependencies"] if d["api_name"] == "frame")
    place.said.append(place.visitor.handle(opened, []))
    _wait_for_note(place, run_id, "up to date again")
    assert place.hub.repo("model", "alice/long").files
    place.call("stop", run_id, False)
    place.wait(run_id, "cancelled")
    place.hub.users[VISITORS] = place.hub.users[RENEWED]


def _wait_for_note(place: Place, run_id: str, words: str) -> None:
    deadline = time.monotonic() + 120
    while not any(words in e.get("text", "") for e in place.call("events", run_id, 0)):
        assert time.monotonic() < deadline, place.said[-1]
        time.sleep(0.2)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _deploy(place: Place) -> None:
    """On the command line, with the token in the environment of its user."""
    for kind in (403, "drop"):
        place.breaks(kind)
        done = subprocess.run(
            [sys.executable, "-m", "qlora_space", "deploy", "--to", "alice/mine", "--yes"],
            env=os.environ | {"HOME": str(place.home), "HF_ENDPOINT": place.hub.url, "HF_TOKEN": VISITORS},
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 2, done
        place.said += [done.stdout, done.stderr]


def _read_all_pages(place: Place, run_id: str) -> None:
    for path in (
        "/", f"/?run={run_id}", "/config", "/gradio_api/info", "/runs/list.json", f"/runs/{run_id}/now.json", "/health",
    ):  # fmt: skip
        answer = place.visitor.request("GET", path)
        assert answer.status_code == 200, path
        place.said.append(answer.text)
    stream = f"{place.url}/runs/{run_id}/stream"
    with httpx.stream("GET", stream, headers=place.visitor.headers, timeout=30) as answer:
        place.said.append(next(answer.iter_text()))
