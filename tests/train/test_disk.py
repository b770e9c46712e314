"""A disk that is full at any phase: what is there stays whole, the missing bytes are named, then it goes on."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_space.core.errors import DiskFull
from qlora_space.core.events import Event, Note
from qlora_space.runs import EventLog, RunFolder, read_events
from qlora_space.train import train
from qlora_space.train.checkpoint import newest_checkpoint
from tests.train.small import events_of, go_on, outcome, small_run


class SmallDisk:
    """A tmpfs of 12 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """To the last byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def leave(self, num_bytes: int) -> None:
        """So much, to a page of memory."""
        self.fill()
        os.truncate(self._ballast, self._ballast.stat().st_size - num_bytes)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def is_full(self) -> bool:
        return self._ballast.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can be mounted by root only")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)  # rows are still mapped


def watched(run: RunFolder, look: Callable[[Event], None]) -> Event:
    """One attempt; `look` sees every event after it was written."""
    log = EventLog(run.events_file)

    def emit(event: Event) -> Event:
        stamped = log.append(event)
        look(stamped)
        return stamped

    try:
        return log.append(train(run, emit, None))
    finally:
        log.close()


def test_the_last_bytes_are_for_telling_that_the_disk_is_full(disk: SmallDisk) -> None:
    file = disk.path / "events.jsonl"
    log = EventLog(file)
    log.append(Note(level="info", text="there is room"))
    disk.fill()
    long = "there is none" * 500  # more than what is left of the file's last block
    log.append(Note(level="warning", text=long))
    assert [e.text for e in read_events(file)[0] if e.kind == "note"][-1] == long
    disk.fill()
    for i in range(3):
        log.append(Note(level="info", text=f"waits in memory {i}"))
    disk.free()
    log.append(Note(level="info", text="there is room again"))
    assert [e.seq for e in read_events(file)[0]] == list(range(6))
    log.close()


def test_checkpoints_that_do_not_fit_are_told_and_written_again_when_there_is_room(
    disk: SmallDisk,
) -> None:
    run = small_run(disk.path)
    on_disk: list[Event] = []

    def look(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == 2:
            disk.fill()
        if event.kind == "metric" and event.step == 5 and disk.is_full:
            on_disk.extend(events_of(run))
            found, skipped = newest_checkpoint(run.checkpoints_folder)
            assert found is not None
            assert (found.progress.step, skipped) == (2, [])
            disk.free()

    assert watched(run, look).kind == "finished"
    (told,) = [e.text for e in on_disk if isinstance(e, Note) and "No checkpoint" in e.text]
    assert re.search(r"after step 3\. The adapter needs [\d,]+ bytes more than the disk has", told)
    assert [e.step for e in events_of(run) if e.kind == "checkpoint"] == [0, 1, 2, 5, 6]
    assert any(e.kind == "note" and "written again" in e.text for e in events_of(run))
    assert [e.seq for e in events_of(run)] == list(range(len(events_of(run))))


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_room_for_later_checkpoints_too_is_asked_for_before_the_first_step(
    disk: SmallDisk, tmp_path: Path, is_cut_off: bool
) -> None:
    """The first checkpoint has no optimizer states, so that it may fit where no other would."""
    whole, run = small_run(tmp_path), small_run(disk.path)
    go_on(whole)
    first, *_, last = [e.num_bytes for e in events_of(whole) if e.kind == "checkpoint"]
    assert first < last / 2

    def look(event: Event) -> None:
        if event.kind == "phase" and event.name == "train":
            disk.leave(2**20 + 2 * last)  # a mebibyte is spare

    def cut_off(event: Event) -> None:
        if event.kind == "checkpoint":
            raise KeyboardInterrupt

    if is_cut_off:
        with pytest.raises(KeyboardInterrupt):
            watched(run, cut_off)
    with pytest.raises(DiskFull, match=r"This run needs [\d,]+ bytes more"):
        watched(run, look)
    assert run.resume_step() == (0 if is_cut_off else None)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["data", "model", "train"])
def test_a_disk_that_is_full_before_the_first_step_is_an_error_with_the_bytes(
    disk: SmallDisk, tmp_path: Path, phase: str
) -> None:
    whole, run = small_run(tmp_path), small_run(disk.path)
    go_on(whole)

    def look(event: Event) -> None:
        if event.kind == "phase" and event.name == phase:
            disk.fill()

    with pytest.raises(DiskFull, match=r"could not be written|needs [\d,]+ bytes more"):
        watched(run, look)
    disk.free()
    assert go_on(run).kind == "finished"
    assert outcome(run) == outcome(whole)


@pytest.mark.slow
def test_the_finished_adapter_waits_for_room(disk: SmallDisk, tmp_path: Path) -> None:
    whole, run = small_run(tmp_path), small_run(disk.path)
    go_on(whole)

    def look(event: Event) -> None:
        if event.kind == "phase" and event.name == "save":
            disk.fill()
        if event.kind == "phase" and event.name == "disk":
            disk.free()

    assert watched(run, look).kind == "finished"
    assert any(e.kind == "note" and "bytes more" in e.text for e in events_of(run))
    assert outcome(run) == outcome(whole)


@pytest.mark.slow
def test_a_report_that_does_not_fit_is_written_by_the_next_attempt(
    disk: SmallDisk, tmp_path: Path
) -> None:
    whole, run = small_run(tmp_path), small_run(disk.path)
    go_on(whole)

    def look(event: Event) -> None:
        if event.kind == "phase" and event.name == "report" and event.done == 1:
            disk.fill()

    with pytest.raises(DiskFull, match=r"report\.json could not be written"):
        watched(run, look)
    disk.free()
    assert run.has_adapter
    assert go_on(run).kind == "finished"
    assert run.report() is not None
    assert outcome(run) == outcome(whole)
