"""What the kernel keeps a process from, seen from a process that tries."""

import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_space.core import confinement

pytestmark = pytest.mark.skipif(
    confinement.landlock_abi() < 4 or platform.machine() not in ("x86_64", "aarch64"),
    reason="needs Landlock with ports",
)
_TRIES = """
import ctypes, json, os, socket, subprocess, sys
from pathlib import Path
from qlora_space.core import confinement

allowed, port, stage = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
open_before = open(sys.argv[4])

def tried(what):
    try:
        what()
        return "done"
    except OSError as error:
        return type(error).__name__

confinement.limit_memory(2**28)
if stage != "memory":
    confinement.allow_files([*confinement.program_folders(), allowed], [allowed], [port])
if stage == "sockets":
    confinement.forbid_sockets_and_programs()
tries = {
    "read inside": lambda: (allowed / "mine").read_text(),
    "write inside": lambda: (allowed / "new").write_text("x"),
    "read outside": lambda: Path(sys.argv[4]).read_text(),
    "list outside": lambda: os.listdir(Path(sys.argv[4]).parent),
    "read what was open": open_before.read,
    "write outside": lambda: (allowed.parent / "new").write_text("x"),
    "remove outside": lambda: Path(sys.argv[4]).unlink(),
    "environment of another": lambda: open("/proc/1/environ").read(),
    "connect": lambda: socket.create_connection(("127.0.0.1", port)),
    "connect elsewhere": lambda: socket.create_connection(("127.0.0.1", port + 1)),
    "bind": lambda: socket.socket().bind(("127.0.0.1", 0)),
    "program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
}
outcome = {name: tried(what) for name, what in tries.items()}
try:
    bytearray(2**29)
    outcome["memory"] = "done"
except MemoryError:
    outcome["memory"] = "MemoryError"
print(json.dumps(outcome))
"""


def outcome(folder: Path, stage: str) -> dict[str, str]:
    allowed, secret = folder / "allowed", folder / "secret"
    allowed.mkdir()
    (allowed / "mine").write_text("x")
    secret.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, "-c", _TRIES, str(allowed), port, stage, str(secret)]
        done = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ))
    return json.loads(done.stdout)


def test_only_what_is_allowed_is_read_written_and_asked(tmp_path: Path) -> None:
    refused = "PermissionError"
    assert outcome(tmp_path, "files") == {
        "read inside": "done",
        "write inside": "done",
        "read outside": refused,
        "list outside": refused,
        "read what was open": "done",
        "write outside": refused,
        "remove outside": refused,
        "environment of another": refused,
        "connect": "done",
        "connect elsewhere": refused,
        "bind": refused,
        "program": "done",
        "memory": "MemoryError",
    }


def test_without_sockets_and_programs_there_are_none(tmp_path: Path) -> None:
    found = outcome(tmp_path, "sockets")
    assert {found[name] for name in ("connect", "bind", "program")} == {"PermissionError"}
    assert found["read inside"] == "done"


def test_without_limits_all_is_done(tmp_path: Path) -> None:
    """The tries of this file can succeed."""
    found = outcome(tmp_path, "memory")
    assert {found[n] for n in ("read outside", "write outside", "connect", "program")} == {"done"}


def test_the_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confinement.missing_here() == ()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "Sockets" in confinement.missing_here()[0]


_ORPHAN = """
import os, signal, sys, time
from qlora_space.core.confinement import die_with_parent
parent = os.getpid()
pid = os.fork()
if not pid:
    die_with_parent(parent)
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    import psutil

    parent = subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive
