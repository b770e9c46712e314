import os
from pathlib import Path

import psutil
import pytest

from qlora_space import machine


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def cgroup(folder: Path, most: str, used: str) -> Path:
    (folder / "memory.max").write_text(most + "\n")
    (folder / "memory.current").write_text(used + "\n")
    return folder


def test_without_a_gpu_it_is_the_cpu_with_its_memory() -> None:
    here = machine.read_hardware(Path.cwd())
    assert here.device == "cpu"
    assert 0 < here.free_gib <= here.memory_gib
    assert here.name == f"CPU, {here.cpu_cores} core{'s' if here.cpu_cores > 1 else ''}"


def test_without_a_gpu_none_is_taken_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for hidden in ("", "-1", "3,1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.take_first_gpu() == ()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden


def test_a_home_that_is_not_made_yet_is_on_the_disk_of_its_parent(tmp_path: Path) -> None:
    wanted = machine.read_hardware(tmp_path).disk_free_gib
    assert machine.read_hardware(tmp_path / "a" / "b").disk_free_gib == pytest.approx(wanted, 0.1)


def test_in_a_container_its_own_limit_and_use_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", cgroup(tmp_path, str(2**29), str(2**28)))
    here = machine.read_hardware(tmp_path)
    assert (here.memory_gib, here.free_gib) == (0.5, 0.25)


def test_files_that_a_container_has_read_do_not_count_as_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cgroup(tmp_path, str(2**29), str(2**29))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {2**27}\nactive_file {2**26}\n")
    monkeypatch.setattr(machine, "_CGROUP", folder)
    assert machine.read_hardware(tmp_path).free_gib == pytest.approx(0.19, abs=0.005)


def test_a_container_without_a_limit_has_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", cgroup(tmp_path, "max", str(2**28)))
    total = psutil.virtual_memory().total / 2**30
    assert machine.read_hardware(tmp_path).memory_gib == pytest.approx(total, 0.01)
