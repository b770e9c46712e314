"""The web server is only a viewer: it is killed again and again while one run runs, and nothing is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from gradio_client import Client

from qlora_space.app.actions import Actions
from qlora_space.core.processes import is_alive
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.runs import RunFolder, view_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[3]
LONG = {"max_steps": 20_000, "max_rows": 120, "num_samples": 0, "gradient_accumulation_steps": 1}


class Server:
    """`python app.py`, which can be killed and started again on the same port."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self._port, self._log = port, home / "server.log"
        self._environment = os.environ | {
            "QLORA_SPACE_HOME": str(home),
            "GRADIO_SERVER_PORT": str(port),
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._answers():
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.kill()
    actions = Actions(Settings(home=tmp_path))
    for run, view in actions.runs():
        if not view.is_over:
            actions.stop(run, keep=False)
    actions.close()


def workers(run: RunFolder) -> list[int]:
    found = psutil.process_iter(["cmdline"])  # None of a process that is gone meanwhile
    return [p.pid for p in found if str(run.path) in (p.info["cmdline"] or ())]


def kill_and_check(server: Server, run: RunFolder, times: int) -> None:
    """After every kill: the same one worker, further on, and every event once and in order."""
    actions, num_events = Actions(Settings(home=run.path.parent.parent)), 0
    for _ in range(times):
        reached = view_of(run).step
        server.kill()
        deadline = time.monotonic() + 60
        while view_of(run).step <= reached:
            assert time.monotonic() < deadline, run.log_file.read_text()[-2000:]
            time.sleep(0.05)
        server.start()
        events = Client(server.url, verbose=False).predict(run.id, 0, api_name="/events")
        assert [event["seq"] for event in events] == list(range(len(events)))
        assert len(events) > num_events
        num_events = len(events)
        assert [event["kind"] for event in events].count("started") == 1
        assert len(workers(run)) == 1
        assert [each.id for each, _ in actions.runs()] == [run.id]
    view = view_of(run)
    assert is_alive(view.pid, view.pid_start_time)
    assert [step for step, _ in view.series("loss")] == list(range(1, view.step + 1))


def started(server: Server, home: Path) -> RunFolder:
    found = Client(server.url, verbose=False).predict(LONG, api_name="/start")
    run = Actions(Settings(home=home)).run(found["run_id"])
    deadline = time.monotonic() + 90
    while view_of(run).step < 2:
        assert time.monotonic() < deadline, run.log_file.read_text()[-2000:]
        time.sleep(0.1)
    return run


@pytest.mark.slow  # in the default suite: a starter that is killed, in tests/test_whole_job.py
def test_a_killed_server_takes_nothing_from_a_run(server: Server, tmp_path: Path) -> None:
    kill_and_check(server, started(server, tmp_path), times=2)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_an_open_page_comes_back_by_itself_through_twenty_kills(
    browser: "Browser", server: Server, tmp_path: Path
) -> None:
    run = started(server, tmp_path)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{server.url}?run={run.id}")
    page.locator("#run-head .chip").filter(has_text="Training").wait_for()
    kill_and_check(server, run, times=20)
    page.wait_for_function(
        "n => (document.querySelector('#run-head')?.innerText.match(/Step ([\\d,]+)/) || ['', '0'])[1]"
        ".replaceAll(',', '') > n",
        arg=view_of(run).step,
    )
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_a_frozen_worker_is_shown_as_stalled_within_a_minute_until_it_goes_on(
    browser: "Browser", server: Server, tmp_path: Path
) -> None:
    run = started(server, tmp_path)
    worker = psutil.Process(view_of(run).pid)
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{server.url}?run={run.id}")
    chip = page.locator("#run-head .chip")
    chip.filter(has_text="Training").wait_for()
    worker.suspend()
    began = time.monotonic()
    try:
        chip.filter(has_text="Stalled").wait_for()
        assert time.monotonic() - began < 60
        page.locator("#run-outcome").filter(has_text="stopped or frozen").wait_for()
        page.locator("#runs").filter(has_text="Stalled").wait_for()
        for _ in range(10):
            assert "Stalled" in chip.inner_text()
            time.sleep(1)
        frozen_at = view_of(run).step
    finally:
        worker.resume()
    chip.filter(has_text="Training").wait_for()
    page.locator("#run-outcome").filter(has_text="stalled").wait_for(state="detached")
    while view_of(run).step <= frozen_at:
        time.sleep(0.1)
    page.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_servers_that_start_at_once_give_the_machine_to_one_run_after_the_other(
    server: Server, tmp_path: Path
) -> None:
    """Two Actions are two servers on one home: they know of each other by the run folders alone."""
    first, second = (Actions(Settings(home=tmp_path)) for _ in range(2))
    runs = [
        acting.start(TrainingRequest(max_steps=4, max_rows=60, num_samples=0, name=name), None)
        for acting, name in ((first, "a"), (second, "b"))
    ]
    deadline = time.monotonic() + 900
    while not all(view_of(run).is_over for run in runs):
        busy = [run for run in runs if view_of(run).status in ("training", "finishing")]
        assert len(busy) <= 1
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [view_of(run).status for run in runs] == ["finished", "finished"]
    for acting in (first, second):
        acting.close()
