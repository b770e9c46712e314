"""Calls of decorated functions through ZeroGPU's own library, one for each name that is given; prints what came of it.

Run as a script by test_refusals.py, in the environment of a Space on ZeroGPU.
"""

import spaces  # isort: skip

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from qlora_space.places import platform, refusals

OURS = os.getpid()
seen = {"calls": 0}


@spaces.GPU(duration=lambda seconds, work: seconds)
def lent(seconds: int, work: str) -> Iterator[Any]:
    seen["calls"] += 1
    yield {"forked": os.getpid() != OURS, "calls": seen["calls"]}
    if work == "too long":
        time.sleep(60)
    if work == "child":
        process = multiprocessing.get_context("fork").Process(target=print)
        process.start()
    if work == "unpicklable":
        yield lambda: None


def result(work: str) -> Any:
    try:
        return list(lent(2 if work == "too long" else 30, work))
    except Exception as error:
        refusal = refusals.refusal_of(error)
        return [refusal.kind, refusal.sentence, refusal.left_seconds] if refusal else repr(error)


def main(token: str, works: list[str]) -> None:
    platform.paid_by(token)
    platform.announce()
    sys.stdout.write("\n" + json.dumps([result(work) for work in works]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
