"""What is between the processes that share a run's steps: torch.distributed, and nothing else.

Rank 0 is the run's worker. Its orders are numbered values of a store, which also holds the answers of the others and
whether they live; weights and gradients go from GPU to GPU, by NCCL (gloo on a CPU).
"""

import json
import os
import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from qlora_space.core.launch import Launch

LOOPBACK = "127.0.0.1"
# torch's own watchdog would abort this process before it can report how the run ended.
_ENVIRONMENT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
_OF_ONE_MACHINE = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
_FOREVER = timedelta(days=30)
_POLL_SECONDS = 0.0005
ENDED = "ended"
LATEST_SECONDS = 30.0  # in which every process of a launch has come to the store
DONE, OUT_OF_MEMORY = "done", "out of memory"


def loopback_listener() -> socket.socket:
    """On which rank 0 serves the store for processes of this machine; no other machine hears of it."""
    return socket.create_server((LOOPBACK, 0))


def serve_store(launch: Launch, listener: socket.socket | None = None) -> dist.Store:
    """Rank 0's open_store. `listener`: where to serve it, which this takes over; without, at the launch's port of all
    networks, unless an agent serves it already."""
    if launch.agent_serves_store:
        return open_store(launch)
    return _store(launch, is_master=True, master_listen_fd=listener.detach() if listener else None)


def open_store(launch: Launch) -> dist.Store:
    """The values that all ranks see, over a connection of its own: one that waits for a value is not for other threads.
    Waits for whoever serves the store."""
    return _store(launch, is_master=False)


def _store(launch: Launch, **more: Any) -> dist.Store:
    address = (launch.address, launch.port, launch.world_size)
    store = dist.TCPStore(*address, timeout=_FOREVER, wait_for_workers=False, **more)
    return dist.PrefixStore(f"qlora_space/{launch.attempt}", store)


def order_key(number: int) -> str:
    return f"order/{number}"


def answer_key(rank: int, number: int) -> str:
    return f"answer/{rank}/{number}"


def failed_key(rank: int) -> str:
    """Its value: why the rank ended, for people."""
    return f"failed/{rank}"


def alive_key(rank: int) -> str:
    """A count that goes up each second."""
    return f"alive/{rank}"


def order_bytes(name: str, **values: Any) -> str:
    return json.dumps({"order": name, **values})


def read_order(data: bytes) -> tuple[str, dict[str, Any]]:
    values = json.loads(data)
    return values.pop("order"), values


def connect(store: dist.Store, launch: Launch, device: str) -> Any:
    """The process group of a run (torch's c10d.Backend). May wait for all others.

    Not by dist.init_process_group: transformers and accelerate must not believe that they were launched many times.
    """
    is_one_machine = launch.address in (LOOPBACK, "localhost")
    for name, value in (_ENVIRONMENT | (_OF_ONE_MACHINE if is_one_machine else {})).items():
        os.environ.setdefault(name, value)
    kind: Any = dist.ProcessGroupNCCL if device == "cuda" else dist.ProcessGroupGloo
    return kind(dist.PrefixStore("group", store), launch.rank, launch.world_size, timeout=_FOREVER)


def check_group(group: Any, rank: int, world: int, device: str) -> None:
    """NCCL makes its connections, and takes its memory, now. Raises RuntimeError if a sum is wrong; hangs if it does.

    A stream never waits here, so that another thread can go on with the GPU when the group is aborted.
    """
    ones = torch.full((1,), float(rank == 0), device=device)
    for begin in (group.broadcast, group.reduce):
        work = begin(ones, 0)
        while not work.is_completed():
            time.sleep(_POLL_SECONDS)
        work.wait()
    if rank == 0 and ones.item() != world:
        raise RuntimeError(f"the sum of {world} ones came as {ones.item()}")
