import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from qlora_space.core import machine


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


@dataclass(frozen=True)
class Card:
    """As the driver knows it. Memory in GiB."""

    uuid: str
    free: float = 139.0
    name: str = "NVIDIA H200"
    processes: tuple[tuple[int, int], ...] = ()  # their ids and bytes


def plug_in(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> None:
    """A driver with these cards in the order of their places on the bus; none is hidden."""

    def card(index: int) -> Card:
        if index >= len(cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return cards[index]

    driver = {
        "Init": lambda: None,
        "DeviceGetCount": lambda: len(cards),
        "DeviceGetHandleByIndex": card,
        "DeviceGetUUID": lambda card: card.uuid,
        "DeviceGetName": lambda card: card.name,
        "DeviceGetMemoryInfo": lambda card: SimpleNamespace(
            total=140 * 2**30, free=int(card.free * 2**30)
        ),
        "DeviceGetCudaComputeCapability": lambda _: (9, 0),
        "DeviceGetComputeRunningProcesses": lambda card: [
            SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.processes
        ],
    }
    for name, answer in driver.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # and put back after the test


FOUR = (Card("GPU-aaaa-0"), Card("GPU-aabb-1"), Card("GPU-bbbb-2"), Card("GPU-cccc-3"))


def test_gpus_that_somebody_else_uses_are_the_last_to_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Card("GPU-d", name="NVIDIA T4")
    plug_in(monkeypatch, FOUR[0], Card("GPU-busy", free=20), other, *FOUR[2:])
    assert machine.read_hardware(tmp_path).num_gpus == 3
    assert machine.take_first_gpu() == ("3", "4", "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_what_this_process_holds_is_read_from_the_first_gpu_that_it_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, other = (os.getpid(), 7), (os.getpid() + 1, 5)
    plug_in(monkeypatch, Card("GPU-a", processes=(other, mine)), Card("GPU-b", processes=(other,)))
    assert machine.gpu_bytes_of_this_process() == 7
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert machine.gpu_bytes_of_this_process() is None  # a container counts processes itself
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu_bytes_of_this_process() is None


def test_cuda_numbers_the_gpus_that_are_taken_as_they_were_numbered_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plug_in(monkeypatch, *FOUR)
    machine.take_first_gpu()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("GPU-bbbb-2,GPU-aaaa-0", ["2", "0"]),
        ("GPU-cccc, GPU-aab", ["3", "1"]),
        ("2,GPU-aaaa-0", ["2", "0"]),
        ("GPU-bbbb-2,GPU-none,GPU-aaaa-0", ["2"]),  # as CUDA does: none after an unknown one
        ("GPU-bbbb-2,GPU-aa,GPU-aaaa-0", ["2"]),  # two begin so
        ("GPU-bbbb-2,9,GPU-aaaa-0", ["2"]),
        ("GPU-none", []),
        ("MIG-aaaa-0", []),
    ],
)
def test_gpus_may_be_named_by_their_uuids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, taken: list[str]
) -> None:
    plug_in(monkeypatch, *FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert machine.read_hardware(tmp_path).device == ("cuda" if taken else "cpu")
    others = machine.take_first_gpu()
    assert [os.environ["CUDA_VISIBLE_DEVICES"], *others] == (taken or [names])


@pytest.mark.parametrize(
    ("line", "has_bf16"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
    ],
)
def test_a_cpu_that_multiplies_bf16_says_so(
    line: str, has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    assert machine.cpu_has_bf16() is machine.read_hardware(tmp_path).has_bf16 is has_bf16


def test_a_cpu_of_which_nothing_is_told_takes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_INFO", Path("/nonexistent"))
    assert machine.cpu_has_bf16() is False


def test_a_run_on_a_gpu_shares_it_with_other_processes_on_it_not_with_busy_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert machine.is_shared("cpu")
    assert not machine.is_shared("cuda"), "there is none"
    plug_in(monkeypatch, Card("GPU-a"), Card("GPU-b", processes=((7, 1), (8, 1))))
    assert not machine.is_shared("cuda")
    assert machine.is_shared("cuda", num_processes=2)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert not machine.is_shared("cpu")
