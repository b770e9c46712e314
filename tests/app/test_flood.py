"""One visitor who calls without end, and what the others notice of it."""

import asyncio
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import httpx
import pytest

from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.runs import create_run
from tests.app.ui.fake import ScriptedBackend
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.space import SpaceVisitor, running_space
from tests.train.conftest import demo_plan

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
CALLS = 500


def _flood(url: str, headers: dict[str, str], session_hash: str) -> list[int]:
    """Statuses of calls that are sent as fast as one process can."""

    async def send() -> list[int]:
        limits = httpx.Limits(max_connections=100)
        body = {"fn_index": 1, "data": [], "session_hash": session_hash}
        async with httpx.AsyncClient(limits=limits, timeout=60, headers=headers) as client:

            async def call() -> int:
                return (await client.post(f"{url}/gradio_api/queue/join", json=body)).status_code

            return await asyncio.gather(*(call() for _ in range(CALLS)))

    return asyncio.run(send())


def test_stop_and_health_do_not_wait_while_somebody_floods(tmp_path: Path) -> None:
    runs = Settings(home=tmp_path / "qlora").runs_folder
    run = create_run(runs, TrainingRequest(), demo_plan(), owner="hub:alice")
    ScriptedBackend(0.0, 4).work(run)
    with FakeHub() as hub, running_space(hub, sys.executable, ROOT, tmp_path) as url:
        alice, bob = SpaceVisitor(url), SpaceVisitor(url)
        for visitor, token in ((alice, ALICE), (bob, BOB)):
            hub.signs_in_as = token
            visitor.sign_in()
        found: list[tuple[int, float]] = []
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as others, httpx.Client(timeout=60) as client:
            flood = others.submit(_flood, url, bob.headers, bob.session_hash)
            while not flood.done():
                for method, path in (("POST", f"/runs/{run.id}/stop"), ("GET", "/health")):
                    started = time.monotonic()
                    answer = client.request(method, f"{url}{path}", headers=alice.headers)
                    found.append((answer.status_code, time.monotonic() - started))
            statuses = flood.result()
    assert statuses.count(429) > CALLS * 0.7, "what is too much is refused before Gradio's queue"
    assert set(statuses) <= {200, 429}
    assert {status for status, _ in found} == {409, 200}, "it is over already; the server is well"
    assert statistics.quantiles([seconds for _, seconds in found], n=20)[-1] < 1.0
