"""One visitor who calls without end, and what the others notice of it."""

import asyncio
import sys
import time
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


async def _flood(visitor: SpaceVisitor) -> list[int]:
    """Statuses of calls that are sent as fast as one process can."""
    limits = httpx.Limits(max_connections=100)
    body = {"fn_index": 1, "data": [], "session_hash": visitor.session_hash}
    async with httpx.AsyncClient(limits=limits, timeout=60, headers=visitor.headers) as client:

        async def call() -> int:
            answer = await client.post(f"{visitor.url}/gradio_api/queue/join", json=body)
            return answer.status_code

        return await asyncio.gather(*(call() for _ in range(CALLS)))


async def _seconds_of(visitor: SpaceVisitor, method: str, path: str) -> tuple[int, float]:
    async with httpx.AsyncClient(timeout=60, headers=visitor.headers) as client:
        started = time.monotonic()
        answer = await client.request(method, f"{visitor.url}{path}")
        return answer.status_code, time.monotonic() - started


def test_stop_and_health_do_not_wait_while_somebody_floods(
    tmp_path: Path,
) -> None:
    run = create_run(
        Settings(home=tmp_path / "qlora").runs_folder,
        TrainingRequest(),
        demo_plan(),
        owner="hub:alice",
    )
    ScriptedBackend(0.0, 4).work(run)
    with FakeHub() as hub, running_space(hub, sys.executable, ROOT, tmp_path) as url:
        alice, bob = SpaceVisitor(url), SpaceVisitor(url)
        for visitor, token in ((alice, ALICE), (bob, BOB)):
            hub.signs_in_as = token
            visitor.sign_in()

        async def both() -> tuple[list[int], list[tuple[int, float]]]:
            flood = asyncio.create_task(_flood(bob))
            found = []
            while not flood.done():
                found.append(await _seconds_of(alice, "POST", f"/runs/{run.id}/stop"))
                found.append(await _seconds_of(alice, "GET", "/health"))
            return await flood, found

        statuses, others = asyncio.run(both())
    assert statuses.count(429) > CALLS * 0.7, "what is too much is refused before Gradio's queue"
    assert set(statuses) <= {200, 429}
    assert {status for status, _ in others} == {409, 200}, "it is over already; the server is well"
    assert max(seconds for _, seconds in others) < 1.0
