"""A run is alive while its process is; a worker that died gets its terminal event, once."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qlora_space.core.events import Started
from qlora_space.core.processes import start_time
from qlora_space.places import local
from qlora_space.places.local import LocalBackend
from qlora_space.runs import EventLog, RunFolder, create_run, read_events
from tests.runs.folders import demo_run

LONG_AGO = time.time() - 1000


def started(run: RunFolder, pid: int) -> None:
    log = EventLog(run.events_file)
    log.append(Started(place="CPU", pid=pid, pid_start_time=start_time(pid)))
    log.close()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return demo_run(tmp_path)


@pytest.fixture
def dead(run: RunFolder) -> RunFolder:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started(run, child.pid)
    assert LocalBackend().view(run).status == "preparing"
    child.kill()
    child.wait()
    return run


def test_a_killed_worker_is_failed_with_the_last_line_of_its_log(dead: RunFolder) -> None:
    dead.log_file.write_text("one\nKilled\n\n")
    for _ in range(3):
        view = LocalBackend().view(dead)
        assert view.status == "failed"
        assert view.failure is not None
        assert view.failure.line == "Killed"
    assert [e.kind for e in read_events(dead.events_file)[0]] == ["started", "failed"]


def test_a_zombie_is_not_alive(run: RunFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    started(run, child.pid)
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    assert LocalBackend().view(run).status == "failed"
    child.wait()


def test_a_worker_has_some_seconds_for_its_first_event(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody is killed for one that never spoke: session 0 is the machine's own."""
    ended: list[int] = []
    for way in ("terminate", "kill"):
        monkeypatch.setattr(psutil.Process, way, lambda process: ended.append(process.pid))
    assert LocalBackend().view(run).status == "queued"
    os.utime(run.events_file, (LONG_AGO, LONG_AGO))
    assert LocalBackend().view(run).status == "failed"
    assert ended == []


def test_a_worker_gets_its_token_where_no_other_process_can_read_it(run: RunFolder) -> None:
    (run.path / "plan.json").unlink()
    os.mkfifo(run.path / "plan.json")  # it waits there until its parent has looked
    backend = LocalBackend()
    backend.start(run, "hf_canary")
    (worker,) = backend._children
    with (run.path / "plan.json").open("w"):
        process = psutil.Process(worker.pid)
        assert "hf_canary" not in process.environ().values()
        assert "hf_canary" not in " ".join(process.cmdline())
        assert os.readlink(f"/proc/{worker.pid}/fd/0") == os.devnull, "nor can a child of it"
    worker.wait()
    assert "hf_canary" not in run.log_file.read_text()


def test_pipes_to_workers_that_ended_are_closed(tmp_path: Path) -> None:
    backend = LocalBackend()
    for name in "ab":
        run = demo_run(tmp_path / name)
        (run.path / "plan.json").write_text("{")  # it ends at once
        backend.start(run, "hf_canary")
        backend._children[-1].wait()
    assert [worker.stdin and worker.stdin.closed for worker in backend._children] == [True, False]


def test_a_run_that_was_to_be_discarded_is_cancelled(dead: RunFolder) -> None:
    dead.ask_to_stop(keep=False)
    assert LocalBackend().view(dead).status == "cancelled"


def test_a_full_disk_does_not_hide_how_a_run_ended(dead: RunFolder) -> None:
    size = dead.events_file.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        view = LocalBackend().view(dead)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert view.status == "failed"
    assert dead.events_file.stat().st_size == size
    assert LocalBackend().view(dead).status == "failed"
    assert [e.seq for e in read_events(dead.events_file)[0]] == [0, 1]


SAVES_WHEN_TERMINATED = """
import signal, sys, time
from pathlib import Path
from qlora_space.core.events import Paused
from qlora_space.runs import EventLog
def pause(*_):
    EventLog(Path(sys.argv[1])).append(Paused(step=1, why="signal"))
    sys.exit(75)
signal.signal(signal.SIGTERM, pause)
print("ready", flush=True)
time.sleep(60)
"""


def test_stopping_without_keeping_ends_a_worker_in_a_long_step_and_lets_it_save_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_STOP_GRACE_SECONDS", 0.5)
    command = [sys.executable, "-c", SAVES_WHEN_TERMINATED, str(run.events_file)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline()
    started(run, child.pid)
    LocalBackend().stop(run, keep=False)
    assert LocalBackend().view(run).status == "cancelled"
    child.wait()


def test_a_run_folder_that_cannot_be_made_is_a_sentence(run: RunFolder) -> None:
    from qlora_space.core.errors import DiskFull

    with pytest.raises(DiskFull, match="run folder could not be written"):
        create_run(Path("/proc/nowhere"), run.request(), run.plan())


FAMILY = (
    "import os, subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(p.pid, flush=True); time.sleep(600)"
)


def family(run: RunFolder) -> tuple[subprocess.Popen[str], int]:
    """A worker that does not listen, and its child."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    started(run, leader.pid)
    return leader, child


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_discarded_run_is_gone_with_its_grandchildren_in_ten_seconds(
    run: RunFolder, is_frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_frozen:  # the other waits as a person does
        monkeypatch.setattr(local, "_STOP_GRACE_SECONDS", 0.5)
    leader, child = family(run)
    (run.checkpoints_folder / "step-000007").mkdir(parents=True)
    if is_frozen:
        os.kill(leader.pid, signal.SIGSTOP)
        os.kill(child, signal.SIGSTOP)
    begun = time.monotonic()
    LocalBackend().stop(run, keep=False)
    assert time.monotonic() - begun < 10
    assert is_gone(leader.pid)
    assert is_gone(child)
    assert LocalBackend().view(run).status == "cancelled"
    assert not run.checkpoints_folder.exists()
    leader.wait()


def test_what_a_killed_worker_leaves_behind_is_ended_too(run: RunFolder) -> None:
    leader, child = family(run)
    leader.kill()
    leader.wait()
    assert LocalBackend().view(run).status == "failed"
    assert is_gone(child)


def test_a_sudden_end_names_the_step_that_it_can_go_on_from(dead: RunFolder) -> None:
    folder = dead.checkpoints_folder / "step-000040"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    failure = LocalBackend().view(dead).failure
    assert failure is not None
    assert "Resume goes on from step 40" in failure.hint
