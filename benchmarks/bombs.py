"""What hostile bases and data cost the inspector: seconds, the largest process, and the sentence, for each.

    python benchmarks/bombs.py
    python benchmarks/bombs.py --only expression

One line for each bomb, and at the end how long an inspection of the demo by another visitor took beside the slowest.
The memory is that of the largest of a request's processes, the seconds are those of the clock and of the CPU.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.request import TrainingRequest
from qlora_space.places.inspector import InspectorLimits, InspectorPool

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.data.reading.test_bombs import BOMBS as FILES
from tests.places.bombs import Watch, bombs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="of this name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        limits = InspectorLimits(wait_seconds=60, answer_seconds=120)
        pool = InspectorPool(Path(scratch) / "logs", limits)
        started = time.monotonic()
        pool.ask(_question())
        print(f"first inspection of the demo: {time.monotonic() - started:.1f} s with the imports")
        print("| bomb | seconds | CPU s | peak MiB | sentence |\n|---|---|---|---|---|")
        print(_row("(the demo)", pool, _question()))
        for name, message in _attacks(Path(scratch), options.only):
            print(_row(name, pool, message), flush=True)
            if name == "slow expression":
                print(_others(pool, message), flush=True)
        pool.close()


def _attacks(scratch: Path, only: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, bomb in enumerate(bombs()):
        if only in bomb.name:
            (folder := scratch / f"{number}").mkdir()
            yield bomb.name, _question(base=str(bomb.base(folder)))
    for make, _ in FILES:
        name = make.__name__.strip("_").replace("_", " ")
        if only in name:
            (folder := scratch / name).mkdir()
            yield name, _question(dataset=str(make(folder)))


def _question(**fields: str) -> dict[str, Any]:
    request = TrainingRequest.model_validate(fields).model_dump(mode="json")
    return {"request": request, "token": None, "allow_local": True, "device": "cpu"}


def _row(name: str, pool: InspectorPool, message: dict[str, Any]) -> str:
    started = time.monotonic()
    with Watch() as watch:
        sentence = _asked(pool, message, "attacker")
        seconds = time.monotonic() - started
    cost = f"{seconds:.1f} | {watch.seconds:.1f} | {watch.peak_mib:.0f}"
    return f"| {name} | {cost} | {sentence[:150]} |"


def _asked(pool: InspectorPool, message: dict[str, Any], visitor: str) -> str:
    try:
        pool.ask(message, visitor)
    except QloraSpaceError as error:
        return str(error).replace("\n", " ")
    return "(inspected)"


def _others(pool: InspectorPool, message: dict[str, Any]) -> str:
    """The demo for another visitor while the attack takes all the time that it may."""
    attack = threading.Thread(target=_asked, args=(pool, message, "attacker"))
    attack.start()
    time.sleep(1)
    started = time.monotonic()
    sentence = _asked(pool, _question(), "another")
    seconds = time.monotonic() - started
    attack.join()
    return f"| (the demo for another visitor meanwhile) | {seconds:.1f} | | | {sentence} |"


if __name__ == "__main__":
    main()
