"""The page of this checkout on a free port, in a process of its own, for benchmarks that measure it from outside."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_ROOT = Path(__file__).parent.parent
_START_SECONDS = 120


@contextmanager
def served_page(home: Path | str) -> Iterator[tuple[str, psutil.Process]]:
    """Its address without a slash at the end, and the server's process, once it answers. Raises TimeoutError."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"QLORA_SPACE_HOME": str(home), "GRADIO_SERVER_PORT": str(port)}
    env |= {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=_ROOT, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/gradio_api/app_id", timeout=2).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not answer within {_START_SECONDS} s.")
