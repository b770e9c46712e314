"""What a watched run sends: nothing lost, nothing twice, and only to who may see it."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Scope

from qlora_space.app.actions import Actions
from qlora_space.app.ui import stream
from qlora_space.app.ui.stream import RunStreams
from qlora_space.app.ui.watch import Watching
from qlora_space.core.events import Finished, Metric, Note, Phase, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.core.visitor import ANONYMOUS, THIS_MACHINE
from qlora_space.runs import EventLog, RunFolder, create_run
from qlora_space.runs.folder import delete_run
from tests.app.ui.fake import FakeActions, scripted_run

_PART = re.compile(r"[<{][^<{]*|^[^<{]+")


@dataclass
class Door:
    """Who comes is switched by the test: this machine's user, or nobody."""

    actions: FakeActions
    url: str = ""
    is_open: bool = True

    def acting_for(self, _: Scope) -> Actions:
        return self.actions.for_visitor(THIS_MACHINE if self.is_open else ANONYMOUS)


class Tab:
    """A browser's tab without a browser: it reads server-sent events and puts pieces together as stream.js does."""

    def __init__(self, response: httpx.Response, before: "Tab | None" = None) -> None:
        self._lines = response.iter_lines()
        self.pieces: dict[str, str] = {}
        self.log = before.log if before else ""
        self.seen = before.seen if before else 0
        self.ended_with = ""
        self.wholes = 0

    def next(self) -> dict[str, Any] | None:
        """One event, applied; None at the end of the stream."""
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                return self._apply(fields)
        return None

    def until(self, seen: int) -> "Tab":
        while self.seen < seen:
            assert self.next() is not None
        return self

    def look_for(self, seconds: float) -> int:
        """Characters that came in the meantime."""
        end, num = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            num += len(json.dumps(self.next()))
        return num

    def _apply(self, fields: dict[str, str]) -> dict[str, Any]:
        kind, news = fields.get("event", ""), json.loads(fields["data"])
        if kind:
            self.ended_with = kind
            return {kind: news}
        self.seen = int(fields["id"])
        for name, piece in news.get("pieces", {}).items():
            self.pieces[name] = piece if isinstance(piece, str) else self._patched(name, piece)
        if "from" in news:
            self.wholes += 1
        self.log = news.get("log", "") + ("" if news.get("from") == 0 else self.log)
        return news

    def _patched(self, name: str, changes: list[tuple[int, int, int, str]]) -> str:
        parts = _PART.findall(self.pieces[name])
        for index, start, dropped, put in changes:
            units = parts[index].encode("utf-16-le")
            begin, end = units[: 2 * start], units[2 * (start + dropped) :]
            parts[index] = begin.decode("utf-16-le") + put + end.decode("utf-16-le")
        return "".join(parts)

    @property
    def steps(self) -> list[int]:
        """Of the log, oldest first."""
        return [int(step) for step in re.findall(r"Step (\d+) of", self.log)][::-1]


@pytest.fixture
def door(actions: FakeActions) -> Iterator[Door]:
    door, watching = Door(actions), Watching(actions)
    app = RunStreams(PlainTextResponse("the page"), watching, door.acting_for)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    door.url = f"http://127.0.0.1:{port}"
    yield door
    watching.close()
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@contextmanager
def watched(
    door: Door, run: RunFolder, query: str = "", *, before: Tab | None = None
) -> Iterator[Tab]:
    headers = {"Last-Event-ID": str(before.seen)} if before else {}
    url = f"{door.url}/runs/{run.id}/stream?{query}"
    with httpx.stream("GET", url, headers=headers, timeout=30) as response:
        assert response.status_code == 200, response.read()
        yield Tab(response, before)


def started_run(actions: FakeActions, num_steps: int = 0) -> tuple[RunFolder, EventLog]:
    plan = actions.plan(TrainingRequest())
    run = create_run(actions.settings.runs_folder, TrainingRequest(), plan)
    log = EventLog(run.events_file)
    log.append(Started(place="CPU", pid=1, pid_start_time=0.0))
    log.append(Phase(name="train", done=0, total=5000))
    for step in range(1, num_steps + 1):
        log.append(metric(step))
    return run, log


def metric(step: int) -> Metric:
    values = {"loss": 3.0 / step, "grad_norm": 1.0 + step % 7, "memory_gib": 1.25}
    return Metric(step=step, total_steps=5000, values=values)


def test_a_tab_sees_every_event_once_and_what_it_shows_is_the_page_as_drawn_anew(
    door: Door,
) -> None:
    run, log = started_run(door.actions, 20)
    with watched(door, run) as tab:
        tab.until(22)
        for step in range(21, 61):
            log.append(metric(step))
            time.sleep(0.03)
        tab.until(62)
        assert tab.steps == list(range(1, 61))
        assert tab.wholes == 1
        tab.look_for(2.5)  # the charts follow within a second
        with watched(door, run) as other:
            other.until(62)
            assert tab.pieces["charts-body"] == other.pieces["charts-body"]
            assert tab.log == other.log


def test_a_tab_that_comes_back_misses_no_event_and_has_none_twice(door: Door) -> None:
    run, log = started_run(door.actions, 10)
    tab = None
    for last in (10, 25, 26, 26, 40):
        while (tab.seen if tab else 12) < last + 2:
            log.append(metric((tab.seen if tab else 12) - 1))
            with watched(door, run, before=tab) as tab:
                tab.until((tab.seen or 12) + 1)
    assert tab
    assert tab.steps == list(range(1, tab.steps[-1] + 1))
    assert tab.steps[-1] >= 40


def test_tabs_with_the_same_options_get_the_same_bytes_and_others_their_own(door: Door) -> None:
    run, _ = started_run(door.actions, 400)
    with watched(door, run) as one, watched(door, run, "log=1&steps=100-200&smooth=0") as zoomed:
        one.until(402)
        zoomed.until(402)
        assert "[100,200]" in zoomed.pieces["charts-body"].replace(" ", "")
        assert "smoothed" in one.pieces["charts-body"]
        assert "smoothed" not in zoomed.pieces["charts-body"]
        assert one.pieces["run-head"] == zoomed.pieces["run-head"]


def test_little_is_sent_of_a_long_run_that_grows(door: Door) -> None:
    run, log = started_run(door.actions, 3000)
    with watched(door, run) as tab:
        tab.until(3002)
        charts = tab.pieces["charts-body"]
        for step in range(3001, 3011):
            log.append(metric(step))
            time.sleep(0.1)
        assert tab.look_for(2.5) < len(charts) / 8
        assert tab.seen == 3012
        assert tab.pieces["charts-body"] != charts
        assert "3010," in tab.pieces["charts-body"]


def test_who_may_not_see_a_run_gets_the_words_of_one_that_does_not_exist(door: Door) -> None:
    run, _ = started_run(door.actions)
    for path in ("stream", "now.json"):
        missing = httpx.get(f"{door.url}/runs/{'0' * 32}/{path}")
        door.is_open = False
        denied = httpx.get(f"{door.url}/runs/{run.id}/{path}")
        door.is_open = True
        assert denied.status_code == missing.status_code == 404
        assert denied.text.replace(run.id, "") == missing.text.replace("0" * 32, "")
        assert httpx.post(f"{door.url}/runs/{run.id}/{path}").status_code == 405
    assert httpx.get(f"{door.url}/runs").text == "the page"


def test_a_tab_that_may_not_see_a_run_any_more_is_sent_away(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHECK_SECONDS", 0.5)
    run, _ = started_run(door.actions)
    with watched(door, run) as tab:
        tab.until(2)
        door.is_open = False
        while tab.next() is not None:
            pass
        assert tab.ended_with == "gone"


def test_a_run_that_is_deleted_sends_its_tabs_away(door: Door) -> None:
    run = scripted_run(door.actions, "a", "finished")
    with watched(door, run) as tab:
        tab.next()
        delete_run(run)
        while tab.next() is not None:
            pass
        assert tab.ended_with == "gone"


@pytest.mark.parametrize(
    "query",
    [
        "smooth=2",
        "steps=a",
        "at=-1",
        "at=1e9",
        "others=x",
        "from=-1",
        "from=9999999999999",
        "log=on",
    ],
)
def test_options_that_are_no_options_are_refused(door: Door, query: str) -> None:
    run, _ = started_run(door.actions)
    answer = httpx.get(f"{door.url}/runs/{run.id}/stream?{query}")
    assert answer.status_code == 400
    assert answer.text.startswith(f"{query.split('=')[0]} is '")


def test_proxies_are_asked_neither_to_hold_a_stream_back_nor_to_keep_it(door: Door) -> None:
    run, _ = started_run(door.actions)
    headers = {"Accept-Encoding": "gzip, br"}
    with httpx.stream("GET", f"{door.url}/runs/{run.id}/stream", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert "content-encoding" not in response.headers


def test_the_page_of_a_run_is_also_there_in_one_piece(door: Door) -> None:
    run, log = started_run(door.actions, 5)
    first = httpx.get(f"{door.url}/runs/{run.id}/now.json").json()
    assert first["from"] == 0
    assert first["seen"] == 7
    assert "Step 5 of" in first["pieces"]["run-head"]
    log.append(metric(6))
    log.append(Finished(step=6))
    time.sleep(0.5)
    second = httpx.get(f"{door.url}/runs/{run.id}/now.json?from=7").json()
    assert "Step 6 of" in second["log"]
    assert "Step 5 of" not in second["log"]
    assert second["state"].startswith("finished")


def test_a_watch_ends_when_nobody_looks(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_space.app.ui.watch._LINGER_SECONDS", 0.3)
    run, _ = started_run(door.actions)
    name = f"watch {run.id[:8]}"

    def is_followed() -> bool:
        return any(thread.name == name for thread in threading.enumerate())

    with watched(door, run) as tab:
        tab.until(2)
        assert is_followed()
    deadline = time.monotonic() + 60
    while is_followed():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_line_that_a_stranger_wrote_is_text(door: Door) -> None:
    run, log = started_run(door.actions)
    hostile = "<img src=x onerror=window.hacked=1>\n\nevent: gone\ndata: 1\n\n😀"
    log.append(Note(level="warning", text=hostile))
    with watched(door, run) as tab:
        tab.until(3)
        log.append(Note(level="warning", text=hostile + "😀"))
        tab.until(4)
        assert not tab.ended_with
        assert "<img" not in tab.log + "".join(tab.pieces.values())
        assert "😀😀" in tab.log


def test_the_list_of_runs_is_sent_when_it_has_changed_and_to_its_owner(door: Door) -> None:
    url = f"{door.url}/runs/list.json"
    run = scripted_run(door.actions, "Ferry <b>facts", "finished")
    scripted_run(door.actions, "Tea", "failed")
    first = httpx.get(url)
    assert first.json()["count"] == 2
    assert "Ferry &lt;b&gt;facts" in first.json()["runs"]
    tag = {"If-None-Match": first.headers["etag"]}
    assert httpx.get(url, headers=tag).status_code == 304
    assert "Ferry" not in httpx.get(url, params={"words": "TEA"}).json()["runs"]
    assert "Tea" not in httpx.get(url, params={"status": "finished"}).json()["runs"]
    assert httpx.get(url, params={"order": "x"}).status_code == 400
    run.rename("Boats")
    assert "Boats" in httpx.get(url, headers=tag).json()["runs"]
    door.is_open = False
    assert httpx.get(url).json()["count"] == 0


def test_tabs_that_ask_by_the_clock_share_a_list_for_a_second_and_a_visitor_has_their_own(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, by_the_clock = f"{door.url}/runs/list.json", {"Cache-Control": stream._BY_THE_CLOCK}
    monkeypatch.setattr(stream, "_LIST_SECONDS", 30.0)
    run = scripted_run(door.actions, "Ferry facts", "finished")
    first = httpx.get(url, headers=by_the_clock)
    run.rename("Boats")
    assert httpx.get(url, headers=by_the_clock).text == first.text
    tag = {"If-None-Match": first.headers["etag"]}
    assert httpx.get(url, headers=by_the_clock | tag).status_code == 304
    assert httpx.get(url, headers=by_the_clock, params={"words": "tea"}).json()["count"] == 1
    assert "Boats" in httpx.get(url).json()["runs"], "what a person did is seen at once"
    assert "Boats" in httpx.get(url, headers=by_the_clock).json()["runs"]
    door.is_open = False
    assert httpx.get(url, headers=by_the_clock).json()["count"] == 0
    door.is_open = True
    run.rename("Ships")
    monkeypatch.setattr(stream, "_LIST_SECONDS", 0.0)
    assert "Ships" in httpx.get(url, headers=by_the_clock).json()["runs"]
