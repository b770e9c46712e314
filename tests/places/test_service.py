"""The warm child: what it refuses, what it survives, what kills it, and what the asker hears."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_space.core.errors import BackendError, DatasetError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.places.service import Service


def question(dataset: str = "demo") -> dict[str, Any]:
    request = TrainingRequest(dataset=dataset, max_rows=20)
    base = model_facts("demo", None, None).model_dump(mode="json")
    asked = request.model_dump(mode="json")
    return {"request": asked, "base": base, "token": None, "allow_local": True, "device": "cpu"}


def children() -> list[int]:
    lines = {p.pid: " ".join(p.cmdline()) for p in psutil.Process().children()}
    return [pid for pid, line in lines.items() if "qlora_space.places.worker inspect" in line]


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests: whatever one does to its child, it answers the next."""
    service = Service("inspect", tmp_path_factory.mktemp("logs"), timeout_seconds=60)
    yield service
    service.close()


def test_a_refusal_comes_through_as_what_it_was_and_the_child_stays(
    inspector: Service, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jsonl") as caught:
        list(inspector.ask(question(str(tmp_path / "gone.jsonl"))))
    assert caught.value.hint
    (child,) = children()
    (answer,) = inspector.ask(question())
    assert answer["rows_looked_at"] == 20
    assert children() == [child]


def test_a_request_that_crashes_is_said_and_survived(inspector: Service) -> None:
    for broken in ({}, {"request": {"nonsense": 1}}):
        with pytest.raises(BackendError, match=r"The inspect process failed: .*\.") as caught:
            list(inspector.ask(broken))
        assert "\n  File" not in str(caught.value)
    (child,) = children()
    assert len(list(inspector.ask(question()))) == 1
    assert children() == [child]


def test_a_child_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    others = children()
    service = Service("inspect", tmp_path, timeout_seconds=0.01)
    with pytest.raises(BackendError, match="no answer within"):
        list(service.ask(question()))
    assert children() == others


def test_a_child_that_dies_in_the_middle_is_said_and_replaced(inspector: Service) -> None:
    inspector.warm_up()
    (child,) = children()
    psutil.Process(child).suspend()
    threading.Timer(0.3, psutil.Process(child).kill).start()
    with pytest.raises(BackendError, match="ended without an answer"):
        list(inspector.ask(question()))
    assert len(list(inspector.ask(question()))) == 1


def test_an_asker_that_goes_away_leaves_no_old_replies(inspector: Service) -> None:
    replies = inspector.ask(question())
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    (answer,) = inspector.ask(question())
    assert answer["dataset"]["id"] == "demo"


def test_closing_ends_the_child(inspector: Service) -> None:
    inspector.warm_up()
    (child,) = children()
    inspector.close()
    assert not psutil.pid_exists(child)
    inspector.close()


def test_a_home_that_cannot_be_written_is_a_sentence() -> None:
    service = Service("inspect", Path("/proc/nowhere/logs"), timeout_seconds=1)
    with pytest.raises(BackendError, match=r"/proc/nowhere.*QLORA_SPACE_HOME"):
        list(service.ask(question()))
