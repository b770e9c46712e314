"""The app as a Space on ZeroGPU: announced before the page is up, trained by its owner's quota, without torch in the
web process, and compared on a lent GPU."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from qlora_space.core.events import Paused, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, RunFolder, create_run, read_events, view_of
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.fake_zero_gpu import FakeZeroGpu, quota_answer, running_zero_gpu
from tests.space import SpaceVisitor, running_space
from tests.train.small import small_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[1]
_SECONDS = 400.0


@dataclass(frozen=True)
class Place:
    url: str
    home: Path
    hub: FakeHub
    zero: FakeZeroGpu


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("space")
    with running_zero_gpu() as zero, FakeHub() as hub:
        variables = zero.environment(home / "platform")
        with running_space(hub, sys.executable, ROOT, home, **variables) as url:
            yield Place(url, home / "qlora", hub, zero)


@dataclass
class PayingVisitor(SpaceVisitor):
    """As the platform lets a visitor through: its header says whose quota it is."""

    gpu_token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"X-IP-Token": self.gpu_token}


def signed_in(place: Place, token: str, gpu_token: str) -> PayingVisitor:
    place.hub.signs_in_as = token
    visitor = PayingVisitor(place.url, gpu_token=gpu_token)
    visitor.sign_in()
    return visitor


def keep_going(visitor: PayingVisitor, run_id: str) -> str:
    """What a tab's timer sends."""
    config = visitor.request("GET", "/config").json()
    (handler,) = (d for d in config["dependencies"] if [t[1] for t in d["targets"]] == ["tick"])
    return visitor.handle(handler["id"], [f"run={run_id}&view=run"])


def run_of_alice(place: Place) -> RunFolder:
    """One that a tab had left, planned for the CPU that is lent here."""
    run = create_run(place.home / "runs", TrainingRequest(), small_plan(), owner="hub:alice")
    log = EventLog(run.events_file)
    log.append(Started(place="CPU", pid=1, pid_start_time=0.0))
    log.append(Paused(step=0, why="tab"))
    log.close()
    return run


def test_the_space_is_announced_and_its_page_has_no_torch(place: Place) -> None:
    assert place.zero.reports == 1
    page = httpx.get(place.url, timeout=60).text
    assert "qlora" in page
    (server,) = (p for p in psutil.Process().children() if "app.py" in p.cmdline())
    libraries = {Path(m.path).name for m in server.memory_maps()}
    assert not {name for name in libraries if "torch" in name}


def test_a_plan_is_for_what_is_lent(place: Place) -> None:
    alice = signed_in(place, ALICE, "a.e30.a")
    planned = alice.call("plan", {})
    assert planned["hardware"]["device"] == "cuda"
    assert planned["hardware"]["name"].endswith("lent by ZeroGPU")


def test_a_run_goes_on_when_its_owner_opens_it_and_by_nobody_elses_quota(place: Place) -> None:
    alice, bob = signed_in(place, ALICE, "a.e30.a"), signed_in(place, BOB, "b.e30.b")
    run = run_of_alice(place)
    deadline = time.monotonic() + _SECONDS
    view = view_of(run)
    while view.status != "finished":
        assert view.status != "failed", view.failure
        assert time.monotonic() < deadline, view
        for tab in (bob, alice):
            keep_going(tab, run.id)
        time.sleep(1)
        view = view_of(run)
    assert {call.token for call in place.zero.calls} == {"a.e30.a"}, "a stranger's tab pays nothing"
    events = read_events(run.events_file)[0]
    assert [e.seq for e in events] == list(range(len(events)))
    trained = len(place.zero.calls)
    done = alice.call("compare", run.id, "Who are you?", "", {"max_new_tokens": 8}, None)
    assert done["same_base"]
    compared = place.zero.calls[trained:]
    assert [call.token for call in compared] == ["a.e30.a"]
    place.zero.refusals = [lambda: quota_answer(3, 18753)]
    with pytest.raises(RuntimeError, match="Of your ZeroGPU quota 3 s are left"):
        alice.call("compare", run.id, "Who are you?", "", {"max_new_tokens": 8}, None)
