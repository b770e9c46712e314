"""An adapter folder is whole or absent, also when the disk ends in the middle."""

import hashlib
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qlora_space.core.errors import DiskFull, ModelError
from qlora_space.train.checkpoint import MANIFEST, save_whole
from tests.train.conftest import Session


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow further: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_folder_appears_only_when_it_is_whole(session: Session, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    seen: list[bool] = []
    num_bytes = save_whole(session.model, folder, lambda _: seen.append(folder.exists()))
    assert seen == [False]
    hashes = json.loads((folder / MANIFEST).read_text())["files"]
    assert "adapter_model.safetensors" in hashes
    for name, entry in hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    assert num_bytes == sum((folder / name).stat().st_size for name in hashes)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_breaks_off_leaves_nothing_and_the_earlier_one_stays(
    session: Session, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    save_whole(session.model, folder)
    before = (folder / MANIFEST).read_bytes()

    def fill(_: Path) -> None:
        Path("/dev/full").write_text("x")

    with pytest.raises(DiskFull, match="No space left on device"):
        save_whole(session.model, folder, fill)
    assert (folder / MANIFEST).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_weights_that_do_not_fit_on_the_disk_are_a_sentence(
    session: Session, tmp_path: Path
) -> None:
    with files_of_at_most(10_000), pytest.raises(DiskFull, match="could not be written"):
        save_whole(session.model, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_saved(session: Session, tmp_path: Path) -> None:
    weight = next(p for p in session.model.parameters() if p.requires_grad)
    kept = weight.data.clone()
    weight.data[0, 0] = float("nan")
    try:
        with pytest.raises(ModelError, match="not finite"):
            save_whole(session.model, tmp_path / "adapter")
    finally:
        weight.data = kept
    assert list(tmp_path.iterdir()) == []
