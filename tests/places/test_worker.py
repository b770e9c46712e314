"""Whatever happens to a worker becomes exactly one last event that a person can read."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qlora_space.core.errors import OutOfMemory
from qlora_space.core.events import Failed, Paused, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.model import explains_out_of_memory
from qlora_space.places.replies import failure_of
from qlora_space.runs import EventLog, RunFolder, create_run, read_events
from tests.runs.folders import demo_run
from tests.train.small import small_plan


def work(run: RunFolder, most_bytes: int = -1) -> tuple[int, list[str], Failed | None]:
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, -1))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)],
        capture_output=True,
        check=False,
        preexec_fn=limit,
    )
    return done.returncode, *told(run)


def told(run: RunFolder) -> tuple[list[str], Failed | None]:
    """The kinds of its events, and how it failed."""
    events, _ = read_events(run.events_file)
    failed = next((e for e in events if isinstance(e, Failed)), None)
    kinds = [event.kind for event in events if event.kind != "heartbeat"]  # of a busy machine
    return kinds, failed


def test_a_plan_that_cannot_be_read_is_one_failed_event(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    (run.path / "plan.json").write_text("{")
    status, kinds, failed = work(run)
    assert status == 1
    assert kinds == ["failed"]
    assert failed is not None
    assert "unexpected" in failed.cause
    assert failed.line
    assert "Traceback" not in failed.line


def run_from_nowhere(home: Path) -> RunFolder:
    """Neither its base nor its dataset is there."""
    run = demo_run(home)
    text = (run.path / "plan.json").read_text().replace('"source": "demo"', '"source": "local"')
    (run.path / "plan.json").write_text(text.replace('"id": "demo"', '"id": "/nowhere"'))
    return run


DRIVER_ASKED = """
import sys
from pathlib import Path
import pynvml
from qlora_space.places import worker
from qlora_space.runs import read_events
def asked():
    events, _ = read_events(Path(sys.argv[1]) / "events.jsonl")
    print(*[e.kind for e in events if e.kind != "heartbeat"], "torch" in sys.modules)
    raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
pynvml.nvmlInit = asked
sys.exit(worker.main(["train", sys.argv[1]]))
"""


@dataclass(frozen=True)
class Refused:
    """How a worker from nowhere ended, on a machine whose driver prints what it finds when it is asked."""

    ended: subprocess.CompletedProcess[str]
    kinds: list[str]
    failed: Failed | None


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    run = run_from_nowhere(tmp_path_factory.mktemp("refused"))
    command = [sys.executable, "-c", DRIVER_ASKED, str(run.path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return Refused(ended, *told(run))


def test_what_the_user_must_change_is_one_failed_event_without_a_line(refused: Refused) -> None:
    assert refused.ended.returncode == 1
    assert refused.kinds == ["started", "failed"]
    assert refused.failed is not None
    assert refused.failed.hint
    assert not refused.failed.line


def test_which_gpus_are_free_is_asked_when_the_turn_has_come_and_before_torch(
    refused: Refused,
) -> None:
    assert refused.ended.stdout == "started False\n"


def test_a_disk_that_ends_while_the_data_is_written_is_said(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    status, kinds, failed = work(run, most_bytes=4000)
    assert status == 1
    assert kinds.count("failed") == 1
    assert failed is not None
    assert "prepared data could not be written" in failed.cause
    assert not run.data_folder.exists()


def test_a_full_disk_is_one_sentence() -> None:
    failed = failure_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (failed.cause, failed.line) == ("The disk is full.", "")


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_unforeseen_error_names_its_line_and_no_folder(error: BaseException) -> None:
    try:
        raise error
    except BaseException as caught:
        failed = failure_of(caught)
    assert "test_worker.py" in failed.cause
    assert failed.line.startswith(type(error).__name__)


def test_no_memory_left_is_a_sentence_whoever_asks_for_it() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"Training needs more memory .* max_length"),
        explains_out_of_memory("Training"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(OutOfMemory), explains_out_of_memory("Training"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="size"), explains_out_of_memory("Training"):
        torch.zeros(2) @ torch.zeros(3)


def test_sigterm_saves_everything_and_pauses(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    text = (run.path / "plan.json").read_text().replace('"max_steps": 2', '"max_steps": 5000')
    (run.path / "plan.json").write_text(text)
    worker = subprocess.Popen(
        [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)],
        stderr=subprocess.DEVNULL,
    )
    while not any(e.kind == "metric" and e.step > 0 for e in read_events(run.events_file)[0]):
        assert worker.poll() is None
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(200) == 75
    ending = read_events(run.events_file)[0][-1]
    assert ending.kind == "paused"
    assert ending.why == "signal"
    assert run.resume_step() == ending.step > 0


@pytest.mark.parametrize("earlier", [[], [Paused(step=0, why="deadline")]])
def test_sigterm_before_an_attempt_has_started_is_no_end_of_the_run(
    tmp_path: Path, earlier: list[Paused]
) -> None:
    run = demo_run(tmp_path)
    with contextlib.closing(EventLog(run.events_file)) as events:
        for ending in earlier:
            events.append(Started(place="CPU", pid=1, pid_start_time=0, resume_step=0))
            events.append(ending)
    plan = run.path / "plan.json"
    plan.unlink()
    os.mkfifo(plan)
    worker = subprocess.Popen(
        [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)],
        stderr=subprocess.DEVNULL,
    )
    writer = None
    while writer is None:  # until it waits for a plan, which never comes
        assert worker.poll() is None
        with contextlib.suppress(OSError):
            writer = os.open(plan, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 75
    os.close(writer)
    kinds = [event.kind for event in read_events(run.events_file)[0]]
    assert kinds == (["started", "paused"] if earlier else ["paused"])


SIGTERM_AT = """
import os, signal, sys
from qlora_space.places import worker
from qlora_space.runs import EventLog
word, when, write = sys.argv[2].encode(), sys.argv[3], EventLog._write_whole
def hear(*_):
    signal.raise_signal(signal.SIGTERM)
def write_and_hear(log, line):
    if when == "before" and word in line:
        hear()
    write(log, line)
    if when == "after" and word in line:
        hear()
EventLog._write_whole = write_and_hear
if when == "first":
    EventLog.start_heartbeats = hear
sys.exit(worker.main(["train", sys.argv[1]]))
"""


def work_and_hear_sigterm(run: RunFolder, word: str, when: str) -> tuple[int, list[str]]:
    """One attempt that hears SIGTERM before or after the line with this word, or first of all. Checks every `seq`."""
    command = [sys.executable, "-c", SIGTERM_AT, str(run.path), word, when]
    status = subprocess.run(command, stderr=run.log_file.open("a"), check=False).returncode
    events, _ = read_events(run.events_file)
    assert [event.seq for event in events] == list(range(len(events)))
    return status, [event.kind for event in events if event.kind != "heartbeat"]


@pytest.mark.slow
def test_sigterm_while_a_publication_is_told_doubles_no_event(tmp_path: Path) -> None:
    run = create_run(
        tmp_path / "runs", TrainingRequest(hub_model_id="a/b"), small_plan(max_steps=1)
    )
    status, kinds = work_and_hear_sigterm(run, '"publish"', "after")
    assert (status, kinds[-1]) == (75, "paused")
    assert kinds.count("paused") == 1


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_sigterm_while_a_failure_is_told_does_not_hide_it(tmp_path: Path, when: str) -> None:
    run = run_from_nowhere(tmp_path)
    assert work_and_hear_sigterm(run, '"failed"', when) == (1, ["started", "failed"])


def test_sigterm_before_the_first_word_of_a_resumed_run_leaves_it_as_it_was(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    log = EventLog(run.events_file)
    log.append(Started(place="CPU", pid=1, pid_start_time=0.0))
    log.append(Paused(step=1, why="signal"))
    log.close()
    assert work_and_hear_sigterm(run, "", "first") == (75, ["started", "paused"])
