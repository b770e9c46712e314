"""A token goes from the server to the worker of its owner's run, and nowhere else."""

import subprocess
import sys
import time

from qlora_space.places.owner_token import TokenWriter

WORKER = """
import subprocess, sys, time
from qlora_space.places.owner_token import OwnerToken
token = OwnerToken.from_stdin()
print(f"first {token.newest}", flush=True)
child = subprocess.run(["cat"], capture_output=True, timeout=30)
print(f"a child reads {child.stdout!r}", flush=True)
token.tell(lambda newest: print(f"told {newest}", flush=True))
time.sleep(float(sys.argv[1]))
"""


def worker(seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_worker_is_told_each_new_token_once_and_its_children_none() -> None:
    child = worker(60)
    assert child.stdin is not None
    assert child.stdout is not None
    writer = TokenWriter(child.stdin)
    writer.send("hf_one")
    lines = [child.stdout.readline() for _ in range(3)]
    assert lines == [b"first hf_one\n", b"a child reads b''\n", b"told hf_one\n"]
    for token in ("hf_one", "hf_two", "hf_two", "hf_three"):
        writer.send(token)
    assert child.stdout.readline() == b"told hf_two\n"
    assert child.stdout.readline() == b"told hf_three\n"
    child.kill()
    child.wait()
    writer.send("hf_four")  # to nobody
    writer.close()
    writer.send("hf_five")


def test_a_worker_ends_as_it_would_when_no_token_comes_any_more() -> None:
    child = worker(0.2)
    assert child.stdin is not None
    TokenWriter(child.stdin).send("hf_one")
    assert child.wait(30) == 0


def test_a_worker_that_reads_nothing_is_not_waited_for() -> None:
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    writer, began = TokenWriter(child.stdin), time.monotonic()
    for i in range(3000):  # more than a pipe holds
        writer.send(f"hf_{i:030}")
    assert time.monotonic() - began < 5
    child.kill()
    child.wait()
    writer.close()
