"""What `deploy` puts on the Hub is a Space: it installs, starts, signs visitors in and does the demo, as Spaces do."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_space.hub.deploy import SpaceSettings, deploy
from tests.fake_hub import ALICE, FakeHub
from tests.fake_openid import space_environment
from tests.test_space_versions import FRONT, space_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
NAME = "alice/app"
_PAGE_SECONDS = 60.0  # the machine may be busy
_START_SECONDS, _DEMO_SECONDS = 300.0, 2400.0
_STEPS = 40  # of the demo's 417: enough to learn from it, with evaluations and an adapter


@dataclass
class Browser:
    """A visitor of the Space. The session's cookie is for https only, so it is carried by hand."""

    url: str
    cookie: str = ""

    def sign_in(self) -> None:
        """The whole dance: the page, the provider, and back with a code."""
        with httpx.Client(timeout=_PAGE_SECONDS) as client:
            target = f"{self.url}/login/huggingface"
            cookies: dict[str, str] = {}
            for _ in range(8):
                sent = {"Cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())}
                answer = client.get(target, headers=sent)
                for line in answer.headers.get_list("set-cookie"):
                    cookies |= {name: m.value for name, m in SimpleCookie(line).items()}
                if not answer.is_redirect:
                    break
                # The Space believes that it is reached by https.
                target = str(answer.url.join(answer.headers["location"]))
                target = re.sub(r"^https://127\.0\.0\.1", "http://127.0.0.1", target)
                if target.rstrip("/") == self.url:
                    break
            self.cookie = f"session={cookies['session']}"

    def call(self, name: str, *values: Any) -> Any:
        """Answer of a named endpoint. Raises RuntimeError with the page's sentence."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        address = f"{self.url}/gradio_api/call/{name}"
        with httpx.Client(timeout=120, headers=headers) as client:
            event = client.post(address, json={"data": list(values)}).raise_for_status().json()
            text = client.get(f"{address}/{event['event_id']}").text
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        if kind == "error":
            raise RuntimeError(data)
        return json.loads(data)[0]


@pytest.fixture
def space(hub: FakeHub, tmp_path: Path) -> Iterator[str]:
    """The address of a running Space, made of what arrived at the Hub and of nothing that is here."""
    deploy(NAME, SpaceSettings(), ALICE)
    clone = tmp_path / "app"
    for name, data in hub.repo("space", NAME).files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(data)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([space_python(), "-m", "venv", tmp_path / "venv"], check=True)
    platform = [f"gradio[oauth]=={FRONT['sdk_version']}", "spaces", "huggingface_hub"]
    install = [python, "-m", "pip", "install", "--quiet", *platform, "-r", "requirements.txt"]
    subprocess.run(install, cwd=clone, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "home").mkdir()
    environment = {
        **{key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ},
        **space_environment(hub, NAME, port),
        "HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "2",
        "NO_PROXY": "127.0.0.1",
    }
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [python, FRONT["app_file"]], cwd=clone, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, server, tmp_path / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=_PAGE_SECONDS).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"not up: {log.read_text()}")


def test_what_is_deployed_starts_on_the_python_of_a_space_and_does_the_demo(space: str) -> None:
    assert "qlora" in httpx.get(space, timeout=_PAGE_SECONDS).text
    with pytest.raises(RuntimeError, match="Sign in to start a run"):
        Browser(space).call("start", {})
    alice = Browser(space)
    alice.sign_in()
    run_id = alice.call("start", {"max_steps": _STEPS})["run_id"]
    with pytest.raises(RuntimeError):
        Browser(space).call("events", run_id, 0)
    deadline = time.monotonic() + _DEMO_SECONDS
    events: list[dict[str, Any]] = []
    while time.monotonic() < deadline and not _is_over(events):
        time.sleep(5)
        events = alice.call("events", run_id, 0)
    assert events[-1]["kind"] == "finished", events[-1]
    assert events[-1]["step"] == _STEPS
    losses = [e["values"]["loss"] for e in events if "loss" in e.get("values", {})]
    assert losses[-1] < losses[0]
    done = alice.call("compare", run_id, "Who are you?", "", {"max_new_tokens": 8})
    assert done["same_base"]


def _is_over(events: list[dict[str, Any]]) -> bool:
    return bool(events) and events[-1]["kind"] in ("finished", "failed")
