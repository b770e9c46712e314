"""The warm child: what it refuses, what it survives, what kills it, and what the asker hears."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_space.core.comparison import CompareRequest, Question
from qlora_space.core.errors import BackendError, HubError
from qlora_space.core.options import Format
from qlora_space.hub import model_facts
from qlora_space.places.service import Service


def question(folder: Path) -> dict[str, Any]:
    """About a base that is not there any more."""
    gone = model_facts("demo", None, None).model_copy(update={"id": str(folder), "source": "local"})
    asked = CompareRequest(
        base=gone,
        bits=16,
        adapter_folders=(str(folder),),
        format=Format.MESSAGES,
        questions=(Question(prompt="x"),),
    )
    return {"request": asked.model_dump(mode="json"), "token": None}


def children() -> list[int]:
    lines = {p.pid: " ".join(p.cmdline()) for p in psutil.Process().children()}
    return [pid for pid, line in lines.items() if "qlora_space.places.worker compare" in line]


@pytest.fixture(scope="module")
def comparer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests: whatever one does to its child, it answers the next."""
    runs = str(tmp_path_factory.mktemp("runs"))
    service = Service("compare", tmp_path_factory.mktemp("logs"), 120, runs)
    yield service
    service.close()


def test_a_refusal_comes_through_as_what_it_was_and_the_child_stays(
    comparer: Service, tmp_path: Path
) -> None:
    with pytest.raises(HubError) as caught:
        list(comparer.ask(question(tmp_path)))
    assert caught.value.hint
    (child,) = children()
    with pytest.raises(HubError):
        list(comparer.ask(question(tmp_path)))
    assert children() == [child]


def test_a_request_that_crashes_is_said_and_survived(comparer: Service, tmp_path: Path) -> None:
    for broken in ({}, {"request": {"nonsense": 1}, "token": None}):
        with pytest.raises(BackendError, match=r"The compare process failed: .*\.") as caught:
            list(comparer.ask(broken))
        assert "\n  File" not in str(caught.value)
    (child,) = children()
    with pytest.raises(HubError):
        list(comparer.ask(question(tmp_path)))
    assert children() == [child]


def test_a_child_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    others = children()
    service = Service("compare", tmp_path, 0.01, str(tmp_path))
    with pytest.raises(BackendError, match="no answer within"):
        list(service.ask(question(tmp_path)))
    assert children() == others


def test_a_child_that_dies_in_the_middle_is_said_and_replaced(
    comparer: Service, tmp_path: Path
) -> None:
    comparer.warm_up()
    (child,) = children()
    psutil.Process(child).suspend()
    threading.Timer(0.3, psutil.Process(child).kill).start()
    with pytest.raises(BackendError, match="ended without an answer"):
        list(comparer.ask(question(tmp_path)))
    with pytest.raises(HubError):
        list(comparer.ask(question(tmp_path)))


def test_closing_ends_the_child(comparer: Service) -> None:
    comparer.warm_up()
    (child,) = children()
    comparer.close()
    assert not psutil.pid_exists(child)
    comparer.close()


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    service = Service("compare", Path("/proc/nowhere/logs"), 1, str(tmp_path))
    with pytest.raises(BackendError, match=r"/proc/nowhere.*QLORA_SPACE_HOME"):
        list(service.ask(question(tmp_path)))


_SERVER = """
import sys, threading, time
from pathlib import Path
from qlora_space.places.service import Service

service = Service("compare", Path(sys.argv[1]), 60, sys.argv[1])
# Whoever asks first may be gone before the child is.
threading.Thread(target=service.warm_up).start()
time.sleep(600)
"""


def test_a_child_dies_with_the_server_and_not_with_the_thread_that_asked_first(
    tmp_path: Path,
) -> None:
    server = psutil.Popen([sys.executable, "-c", _SERVER, str(tmp_path)])
    while not (left := server.children()):
        time.sleep(0.1)
    time.sleep(3)
    assert left[0].is_running()
    server.kill()
    server.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
