"""What `deploy` puts on the Hub is a Space: it installs, starts, signs visitors in and does the demo, as Spaces do."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_space.hub.deploy import SpaceSettings, deploy
from tests.fake_hub import ALICE, FakeHub
from tests.space import SpaceVisitor, running_space
from tests.test_space_versions import FRONT, space_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
NAME = "alice/app"
_DEMO_SECONDS = 2400.0
_STEPS = 40  # of the demo's 417: enough to learn from it, with evaluations and an adapter


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
    with running_space(hub, python, clone, tmp_path / "home") as url:
        yield url


def test_what_is_deployed_starts_on_the_python_of_a_space_and_does_the_demo(space: str) -> None:
    assert "qlora" in httpx.get(space, timeout=60).text
    with pytest.raises(RuntimeError, match="Sign in to start a run"):
        SpaceVisitor(space).call("start", {})
    alice = SpaceVisitor(space)
    alice.sign_in()
    run_id = alice.call("start", {"max_steps": _STEPS})["run_id"]
    with pytest.raises(RuntimeError):
        SpaceVisitor(space).call("events", run_id, 0)
    deadline = time.monotonic() + _DEMO_SECONDS
    events: list[dict[str, Any]] = []
    while time.monotonic() < deadline and not _is_over(events):
        time.sleep(5)
        events = alice.call("events", run_id, 0)
    assert events[-1]["kind"] == "finished", events[-1]
    assert events[-1]["step"] == _STEPS
    losses = [e["values"]["loss"] for e in events if "loss" in e.get("values", {})]
    assert losses[-1] < losses[0]
    done = alice.call("compare", run_id, "Who are you?", "", {"max_new_tokens": 8}, None)
    assert done["same_base"]


def _is_over(events: list[dict[str, Any]]) -> bool:
    return bool(events) and events[-1]["kind"] in ("finished", "failed")
