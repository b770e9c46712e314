import os
import subprocess
import sys
import time

import psutil
import pytest

from qlora_space.core.processes import is_alive, kill_tree, start_time
from qlora_space.places.environment import child_environment, lent_gpu_environment

FAMILY = (
    "import subprocess, sys, time;"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(p.pid, flush=True); time.sleep(600)"
)


def test_a_child_sees_an_allow_list_and_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OAUTH_CLIENT_SECRET", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "canary")
    assert "canary" not in child_environment().values()
    assert child_environment()["PATH"] == os.environ["PATH"]


def test_what_asks_for_lent_gpus_knows_the_platform_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "canary")
    monkeypatch.setenv("SPACES_ZERO_DEVICE_API_URL", "http://platform")
    assert "http://platform" not in child_environment().values()
    assert "http://platform" in lent_gpu_environment().values()
    assert "canary" not in lent_gpu_environment().values()


def test_killing_a_worker_takes_its_children_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    grandchild = int(parent.stdout.readline())
    begun = start_time(parent.pid)
    assert is_alive(parent.pid, begun)
    started = time.monotonic()
    kill_tree(parent.pid)
    assert time.monotonic() - started < 8
    assert not is_alive(parent.pid, begun)
    assert (
        not psutil.pid_exists(grandchild)
        or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    )


def test_a_reused_process_id_is_not_mistaken_for_the_worker() -> None:
    me = os.getpid()
    assert is_alive(me, start_time(me))
    assert not is_alive(me, start_time(me) - 100)


def test_killing_nobody_is_no_error() -> None:
    kill_tree(2**22 - 7)
