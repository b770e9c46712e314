"""A folder appears whole or not at all, and the one that it replaces stays until then."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core import atomic
from qlora_space.core.atomic import recover, whole_folder, write_atomically
from qlora_space.core.errors import DiskFull

KILLED_AT = """
import os, sys
from pathlib import Path
from qlora_space.core import atomic
class Killed:
    left = int(sys.argv[2])
    def __getattr__(self, name):
        if name in ("makedirs", "open", "fsync", "rename"):
            Killed.left -= 1
            if not Killed.left:
                os._exit(9)
        return getattr(os, name)
atomic.os = Killed()
with atomic.whole_folder(Path(sys.argv[1]), "It") as part:
    (part / "a").write_text("new")
    (part / "inner").mkdir()
    (part / "inner" / "b").write_text("new")
"""


def made(folder: Path, text: str) -> Path:
    with whole_folder(folder, "It") as part:
        (part / "a").write_text(text)
    return folder


def test_an_error_inside_leaves_the_old_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "old")
    with pytest.raises(ValueError, match="mine"), whole_folder(folder, "It") as part:
        raise ValueError("mine", (part / "a").write_text("half"))
    with (
        pytest.raises(DiskFull, match="It could not be written: No space"),
        whole_folder(folder, "It"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_kill_at_any_call_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    outcomes = []
    for at in range(1, 40):
        folder = made(tmp_path / str(at) / "x", "old")
        command = [sys.executable, "-c", KILLED_AT, str(folder), str(at)]
        status = subprocess.run(command, check=False).returncode
        recover(folder.parent)
        assert list(folder.parent.iterdir()) == [folder], at
        texts = {file.read_text() for file in folder.rglob("*") if file.is_file()}
        assert len(texts) == 1, at
        outcomes += texts
        if not status:
            break
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count("old") > 5
    assert outcomes[-2:] == ["new", "new"]


def test_a_name_that_cannot_be_taken_gives_the_old_folder_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "x", "old")

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith(".part"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    real = os.rename
    monkeypatch.setattr(atomic.os, "rename", rename)
    with pytest.raises(DiskFull, match="Input/output error"):
        made(folder, "new")
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("digits", ["", ".01234567"])
def test_what_killed_processes_of_this_and_older_versions_left_is_undone(
    tmp_path: Path, digits: str
) -> None:
    for name in (f".x{digits}.part", f".x{digits}.old", f".y{digits}.old", "y"):
        (tmp_path / name).mkdir()
    (tmp_path / f".x{digits}.old" / "a").touch()
    recover(tmp_path, "y")
    assert (tmp_path / f".x{digits}.old").exists()
    recover(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    assert (tmp_path / "x" / "a").exists()


def test_what_a_living_process_replaces_is_left_to_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "old")
    with whole_folder(folder, "It") as part:
        old = part.with_suffix(".old")
        folder.rename(old)
        recover(tmp_path)
        assert part.exists()
        assert old.exists()
        old.rename(folder)


def test_bytes_that_the_disk_lacks_are_named_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFull, match=r"It needs [\d,]+ bytes more than the disk has free"),
        whole_folder(tmp_path / "x" / "y", "It", needed_bytes=2**60),
    ):
        raise AssertionError("not reached")
    assert not list(tmp_path.iterdir())


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_atomically(file, "old")
    write_atomically(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(DiskFull, match="b could not be written: No such file"):
        write_atomically(tmp_path / "gone" / "b", "x")
