"""A follower that comes so far and no further: HOW far, then the arguments of `follow`."""

import sys
from pathlib import Path

from qlora_space.train.protocol import LOADED, connect


def main(how: str, rank: str, world: str, store_file: str) -> None:
    if how == "broken":
        sys.stdout.write("Its base is broken.\n")
        return
    sys.stdout.write(LOADED + "\n")
    sys.stdout.flush()
    _group = connect(Path(store_file), int(rank), int(world), "cpu") if how == "connected" else None
    sys.stdin.buffer.read()  # until the worker closes it


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[3:6])
