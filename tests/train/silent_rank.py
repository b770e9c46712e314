"""A further process that comes so far and no further: HOW far, then the arguments of the worker."""

import os
import sys
import time

from qlora_space.core.launch import take_launch
from qlora_space.train.between_ranks import (
    DONE,
    ENDED,
    answer_key,
    connect,
    failed_key,
    open_store,
    order_key,
)


def main(how: str) -> None:
    launch = take_launch(os.environ)
    assert launch is not None
    store = open_store(launch)
    if how == "broken":
        store.set(failed_key(launch.rank), "Its base is broken.")
        return
    store.get(order_key(0))
    store.set(answer_key(launch.rank, 0), DONE)
    _group = connect(open_store(launch), launch, "cpu") if how == "connected" else None
    while not store.check([ENDED]):
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
