"""A run on the processes that torchrun starts: on one machine and, as two network namespaces, on two."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from qlora_space.core.events import Note
from qlora_space.core.launch import Launch
from qlora_space.runs import RunFolder
from qlora_space.train.between_ranks import (
    LOOPBACK,
    loopback_listener,
    open_store,
    order_bytes,
    order_key,
    serve_store,
)
from tests.train.small import STEPS, events_of, go_on, outcome, small_run
from tests.train.test_data_parallel import SAME, shared_plan, step_of

LONG = {"max_steps": 60, "save_steps": 2, "eval_steps": 1000}
HOST, GUEST = "10.231.0.1", "10.231.0.2"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def torchrun(run: RunFolder, *options: str, before: tuple[str, ...] = (), **more: str):
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    worker = ["-m", "qlora_space.places.worker", "train", str(run.path)]
    return subprocess.Popen(
        [*before, *command, *worker],
        stderr=run.log_file.open("a"),
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | more,
    )


def workers_of(run: RunFolder, agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = psutil.Process(agent.pid).children(recursive=True)
    return [
        p
        for p in found
        if "qlora_space.places.worker" in p.cmdline() and str(run.path) in p.cmdline()
    ]


def wait_for(run: RunFolder, step: int, *agents: subprocess.Popen[bytes]) -> None:
    while step_of(run) < step:
        assert all(agent.poll() is None for agent in agents), run.log_file.read_text()[-3000:]
        time.sleep(0.1)


def losses_of(run: RunFolder) -> dict[int, float]:
    return outcome(run).numbers["loss"]


def alone(tmp_path: Path, **changed: object) -> dict[int, float]:
    run = small_run(tmp_path / "alone", shared_plan(1, **changed))
    assert go_on(run).kind == "finished"
    return losses_of(run)


def test_two_processes_of_torchrun_do_what_one_does(tmp_path: Path) -> None:
    run = small_run(tmp_path, shared_plan(2))
    assert torchrun(run, "--nproc-per-node", "2").wait() == 0, run.log_file.read_text()[-3000:]
    assert "2 GPUs share every step." in [e.text for e in events_of(run) if isinstance(e, Note)]
    assert losses_of(run) == pytest.approx(alone(tmp_path), rel=50 * SAME)


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_killed_process_torchrun_starts_all_again_and_nothing_is_lost(
    tmp_path: Path, rank: int
) -> None:
    run = small_run(tmp_path, shared_plan(2, **LONG))
    agent = torchrun(run, "--nproc-per-node", "2", "--max-restarts", "2")
    wait_for(run, 5, agent)
    by_start = sorted(workers_of(run, agent), key=lambda process: process.create_time())
    victim = next(p for p in by_start if is_rank_0(run, p) == (rank == 0))
    victim.send_signal(signal.SIGKILL)
    assert agent.wait() == 0, run.log_file.read_text()[-3000:]
    assert sum(e.kind == "started" for e in events_of(run)) == 2
    wanted, got = alone(tmp_path, **LONG), losses_of(run)
    assert len(got) == LONG["max_steps"]
    assert got == pytest.approx(wanted, rel=1000 * SAME)


def is_rank_0(run: RunFolder, process: psutil.Process) -> bool:
    starts = [e for e in events_of(run) if e.kind == "started"]
    return starts[-1].pid == process.pid  # type: ignore[union-attr]


@pytest.fixture
def two_machines() -> Iterator[dict[str, tuple[str, ...]]]:
    """A network namespace for each, with one cable between them: how to run a command there, by address."""
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    ip = lambda *words: subprocess.run(["ip", *words], check=True)  # noqa: E731
    try:
        for name in ("qlora-a", "qlora-b"):
            ip("netns", "add", name)
            ip("netns", "exec", name, "ip", "link", "set", "lo", "up")
    except subprocess.CalledProcessError:
        pytest.skip("no network namespace can be made here")
    try:
        ip("link", "add", "cable-a", "netns", "qlora-a", "type", "veth",
           "peer", "name", "cable-b", "netns", "qlora-b")  # fmt: skip
        for end, address in (("a", HOST), ("b", GUEST)):
            inside = ("netns", "exec", f"qlora-{end}", "ip")
            ip(*inside, "addr", "add", f"{address}/24", "dev", f"cable-{end}")
            ip(*inside, "link", "set", f"cable-{end}", "up")
        yield {HOST: ("ip", "netns", "exec", "qlora-a"), GUEST: ("ip", "netns", "exec", "qlora-b")}
    finally:
        for name in ("qlora-a", "qlora-b"):
            ip("netns", "del", name)


def start_on_both(
    run: RunFolder, two_machines: dict[str, tuple[str, ...]]
) -> list[subprocess.Popen[bytes]]:
    common = (
        "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "2", "--rdzv-id", "run",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOST}:29511",
    )  # fmt: skip
    return [
        torchrun(
            run, *common, "--rdzv-conf", f"last_call_timeout=10,is_host={int(address == HOST)}",
            "--local-addr", address, before=before, GLOO_SOCKET_IFNAME=cable,
        )
        for (address, before), cable in zip(two_machines.items(), ("cable-a", "cable-b"), strict=True)
    ]  # fmt: skip


def test_a_run_on_two_machines_is_the_run_on_one(
    tmp_path: Path, two_machines: dict[str, tuple[str, ...]]
) -> None:
    run = small_run(tmp_path, shared_plan(2))
    agents = start_on_both(run, two_machines)
    assert [agent.wait() for agent in agents] == [0, 0], run.log_file.read_text()[-3000:]
    assert "2 GPUs share every step." in [e.text for e in events_of(run) if isinstance(e, Note)]
    got = losses_of(run)
    assert len(got) == STEPS
    assert got == pytest.approx(alone(tmp_path), rel=50 * SAME)


def test_when_a_machine_is_lost_the_other_one_goes_on_alone(
    tmp_path: Path, two_machines: dict[str, tuple[str, ...]]
) -> None:
    run = small_run(tmp_path, shared_plan(2, **LONG))
    agents = start_on_both(run, two_machines)
    wait_for(run, 5, *agents)
    of_rank_0 = next(a for a in agents if any(is_rank_0(run, p) for p in workers_of(run, a)))
    (lost,) = (a for a in agents if a is not of_rank_0)
    for process in [*workers_of(run, lost), psutil.Process(lost.pid)]:
        process.kill()
    if (
        lost is agents[0]
    ):  # it served torchrun's rendezvous too: the other one ends, and is started again
        of_rank_0.wait()
        assert torchrun(run, "--nproc-per-node", "1").wait() == 0
    else:
        assert of_rank_0.wait() == 0, run.log_file.read_text()[-3000:]
    got = losses_of(run)
    assert len(got) == LONG["max_steps"]
    assert got == pytest.approx(alone(tmp_path, **LONG), rel=1000 * SAME)


def test_a_store_belongs_to_one_attempt() -> None:
    """What was ordered before torchrun started all again is not done again."""
    listener = loopback_listener()
    first = Launch(0, 2, 0, LOOPBACK, listener.getsockname()[1])
    served = serve_store(first, listener)
    served.set(order_key(0), order_bytes("end"))
    assert open_store(first).check([order_key(0)])
    assert not open_store(replace(first, attempt="1")).check([order_key(0)])
