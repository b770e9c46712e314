"""A Space on loopback, started as its platform would, and visitors who sign in by the whole dance."""

import json
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx

from tests.fake_hub import FakeHub
from tests.fake_openid import space_environment

_START_SECONDS = 300.0


@dataclass
class SpaceVisitor:
    """Somebody with a browser. The session's cookie is for https only, so it is carried by hand."""

    url: str
    cookie: str = ""
    session_hash: str = field(default_factory=lambda: secrets.token_hex(5))

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": self.cookie} if self.cookie else {}

    def sign_in(self) -> None:
        """The whole dance: the page, the provider, and back with a code."""
        with httpx.Client() as client:
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

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        with httpx.Client(timeout=120, headers=self.headers) as client:
            return client.request(method, f"{self.url}{path}", **options)

    def call(self, name: str, *values: Any) -> Any:
        """Answer of a named endpoint. Raises RuntimeError with the page's sentence."""
        address = f"/gradio_api/call/{name}"
        event = self.request("POST", address, json={"data": list(values)}).raise_for_status().json()
        text = self.request("GET", f"{address}/{event['event_id']}").text
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        if kind == "error":
            raise RuntimeError(data)
        return json.loads(data)[0]

    def handle(self, fn_index: int, data: list[Any], event_data: Any = None) -> str:
        """Everything that an event handler of the page sends to this visitor's session."""
        body = {
            "fn_index": fn_index,
            "data": data,
            "event_data": event_data,
            "session_hash": self.session_hash,
            "trigger_id": None,
        }
        joined = self.request("POST", "/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return joined.text
        query = {"session_hash": self.session_hash}
        return joined.text + self.request("GET", "/gradio_api/queue/data", params=query).text


@contextmanager
def running_space(
    hub: FakeHub, python: str | Path, app: Path, home: Path, **more: str
) -> Iterator[str]:
    """The address of the app in `app`, with its runs in `home`; `more`: further environment variables."""
    port = free_port()
    platform = space_environment(hub, "alice/app", port)
    with running_app(python, app, home, port, platform | more) as url:
        yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_app(
    python: str | Path, app: Path, home: Path, port: int, variables: dict[str, str]
) -> Iterator[str]:
    """The same with these variables, on a Space or not; what it prints is in `home/server.log`."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **{key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ},
        "HOME": str(home),
        "QLORA_SPACE_HOME": str(home / "qlora"),
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "2",
        "NO_PROXY": "127.0.0.1",
        **variables,
    }
    log_file = home / "server.log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            [python, "app.py"], cwd=app, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, server, log_file)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_up(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not up: {log.read_text()}")
