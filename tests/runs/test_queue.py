"""The queue with real processes: they wait as workers do, without torch and without a server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_space.core.events import Finished, Metric, Phase, Started
from qlora_space.core.processes import is_alive, start_time
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import (
    EventLog,
    RunFolder,
    create_run,
    fold,
    list_runs,
    queue,
    queue_positions,
    read_events,
    view_of,
)
from tests.train.conftest import demo_plan

# Emits Started, waits in the queue, enters the phase train, and stays in it until it is killed or stopped.
WORKER = """
import sys, time
time.sleep(float(sys.argv[3]))
import psutil
from pathlib import Path
from qlora_space.core.events import Cancelled, Finished, Phase, Started
from qlora_space.core.processes import start_time
from qlora_space.runs import EventLog, RunFolder, QueueSlot, own_run
run = RunFolder(Path(sys.argv[1]))
if (lock := own_run(run)) is None:
    sys.exit(9)
log, me, slot = EventLog(run.events_file), psutil.Process(), QueueSlot(run)
log.append(Started(place="CPU", pid=me.pid, pid_start_time=start_time(me.pid)))
if not slot.wait(log.append, log.heartbeat, lambda: run.stop_request() is not None):
    log.append(Cancelled(step=0))
    sys.exit(0)
log.append(Phase(name="train", done=0, total=9))
while run.stop_request() is None:
    time.sleep(0.02)
log.append(Finished(step=9))
time.sleep(float(sys.argv[2]))
"""
Worker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def worker() -> Iterator[Worker]:
    started: list[subprocess.Popen[bytes]] = []

    def start(
        run: RunFolder, teardown_seconds: float = 0.0, import_seconds: float = 0.0
    ) -> subprocess.Popen[bytes]:
        waits = [str(teardown_seconds), str(import_seconds)]
        command = [sys.executable, "-c", WORKER, str(run.path), *waits]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def new_run(home: Path) -> RunFolder:
    return create_run(home / "runs", TrainingRequest(), demo_plan())


def until(run: RunFolder, last: str) -> None:
    """Wait until the last event is of that kind, or of the phase of that name."""
    deadline = time.monotonic() + 60
    while _kinds(run)[-1:] != [last]:
        assert time.monotonic() < deadline, _kinds(run)
        time.sleep(0.02)


def _kinds(run: RunFolder) -> list[str]:
    events = [e for e in read_events(run.events_file)[0] if e.kind != "heartbeat"]
    return [e.name if isinstance(e, Phase) else e.kind for e in events]


def test_runs_have_the_machine_one_after_another_in_the_order_they_came(
    tmp_path: Path, worker: Worker
) -> None:
    runs = [new_run(tmp_path) for _ in range(3)]
    for run in runs:
        worker(run)
        until(run, "train" if run is runs[0] else "queue")
    assert [_positions(run) for run in runs] == [[], [1], [2]]
    runs[0].ask_to_stop(keep=True)
    until(runs[1], "train")
    deadline = time.monotonic() + 30
    while _positions(runs[2]) != [2, 1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _positions(runs[2]) == [2, 1]
    runs[1].ask_to_stop(keep=True)
    until(runs[2], "train")


def test_workers_of_the_same_hundredth_of_a_second_have_the_order_of_their_runs(
    tmp_path: Path,
) -> None:
    """As many as make it improbable that random ids have that order too."""
    runs = [new_run(tmp_path) for _ in range(6)]
    for run in runs:
        started = Started(place="CPU", pid=os.getpid(), pid_start_time=start_time(os.getpid()))
        log = EventLog(run.events_file)
        log.append(started)
        log.append(Phase(name="queue", done=0, total=1))
        log.close()
    assert [r.id for r in list_runs(tmp_path / "runs")] == [r.id for r in reversed(runs)]
    assert [queue.QueueSlot(run)._num_before() for run in runs] == [0, 1, 2, 3, 4, 5]
    found = queue_positions([(run, view_of(run)) for run in reversed(runs)], time.time(), ())
    assert [found[run.id].num_before for run in runs if run.id in found] == [1, 2, 3, 4, 5]


def test_a_worker_whose_imports_are_slow_keeps_the_position_in_which_it_was_started(
    tmp_path: Path, worker: Worker
) -> None:
    first = new_run(tmp_path)
    worker(first, import_seconds=3.0)
    second = new_run(tmp_path)
    worker(second)
    until(second, "queue")
    assert _kinds(first) == []
    until(first, "train")
    assert _kinds(second) == ["started", "queue"]
    first.ask_to_stop(keep=True)
    until(second, "train")


def _positions(run: RunFolder) -> list[int]:
    events = read_events(run.events_file)[0]
    return [e.total for e in events if isinstance(e, Phase) and e.name == "queue"]


def test_the_next_one_goes_when_the_one_before_is_killed(tmp_path: Path, worker: Worker) -> None:
    first, second = new_run(tmp_path), new_run(tmp_path)
    running = worker(first)
    until(first, "train")
    worker(second)
    until(second, "queue")
    running.kill()
    running.wait()
    until(second, "train")


def test_one_that_waits_can_be_stopped_and_the_one_behind_it_moves_up(
    tmp_path: Path, worker: Worker
) -> None:
    first, second, third = (new_run(tmp_path) for _ in range(3))
    for run, word in ((first, "train"), (second, "queue"), (third, "queue")):
        worker(run)
        until(run, word)
    second.ask_to_stop(keep=False)
    until(second, "cancelled")
    first.ask_to_stop(keep=True)
    until(third, "train")


def test_a_frozen_one_that_waits_does_not_hold_up_the_others(
    tmp_path: Path, worker: Worker
) -> None:
    first, second, third = (new_run(tmp_path) for _ in range(3))
    worker(first)
    until(first, "train")
    frozen = worker(second)
    until(second, "queue")
    os.kill(frozen.pid, signal.SIGSTOP)
    worker(third)
    until(third, "queue")
    first.ask_to_stop(keep=True)
    until(third, "train")


def test_a_worker_that_hangs_after_its_last_event_is_killed_for_the_next_one(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_run(tmp_path)
    wedged = worker(first, teardown_seconds=600)
    until(first, "train")
    first.ask_to_stop(keep=True)
    until(first, "finished")
    assert view_of(first).status == "finished"
    second = new_run(tmp_path)
    log = EventLog(second.events_file)
    log.append(Started(place="CPU", pid=os.getpid(), pid_start_time=start_time(os.getpid())))
    monkeypatch.setattr(queue, "_TEARDOWN_SECONDS", 0.0)
    assert queue.QueueSlot(second).wait(log.append, log.heartbeat, lambda: False)
    assert not is_alive(wedged.pid, start_time(wedged.pid))


def test_a_run_has_one_worker(tmp_path: Path, worker: Worker) -> None:
    run = new_run(tmp_path)
    worker(run)
    until(run, "train")
    assert worker(run).wait(30) == 9
    assert _kinds(run) == ["started", "train"]


def test_expected_starts_add_up_what_is_left_of_the_runs_before(tmp_path: Path) -> None:
    running, second, third = (new_run(tmp_path) for _ in range(3))
    now = 10.0
    start = Started(place="CPU", pid=1, pid_start_time=0.0)
    steps = [Metric(step=i, total_steps=10, values={"loss": 1.0}, time=i) for i in (1, 2, 3, 4)]
    training = fold([start.model_copy(update={"time": 1.0}), Phase(name="train", done=0, total=10)])
    training = fold(steps, training)
    waits = Phase(name="queue", done=0, total=1)
    views = [fold([start.model_copy(update={"pid_start_time": at}), waits]) for at in (2.0, 3.0)]
    found = queue_positions([(third, views[1]), (running, training), (second, views[0])], now, ())
    left = training.eta_seconds
    assert left == 6.0
    assert found[second.id] == queue.QueuePosition(1, left)
    assert found[third.id] == queue.QueuePosition(2, left + second.plan().estimate.seconds)
    assert running.id not in found
    frozen = queue_positions([(running, training), (second, views[0])], now + 100, {running.id})
    assert frozen[second.id].stalled == running.name()
    over = fold([Finished(step=10)], training)
    assert list(queue_positions([(running, over), (second, views[0])], now, ())) == []
