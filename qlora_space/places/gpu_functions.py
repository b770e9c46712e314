"""What runs on a GPU of ZeroGPU, each call in a process that the platform's library forks for it, or did before.

Imported only where a Space has such hardware. A forked process may start no process of multiprocessing, and what it
yields is pickled.
"""

import spaces  # isort: skip

import functools
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from qlora_space.core.comparison import CompareRequest
from qlora_space.core.confinement import die_with_parent
from qlora_space.core.events import event_to_line
from qlora_space.generate.resident import ResidentModel
from qlora_space.hub.connection import stay_offline
from qlora_space.places.replies import Message, failure_of, reply_lines
from qlora_space.runs import RunFolder
from qlora_space.train.slices import SliceEnd, SliceTrainer

# Whatever is forked here is killed with this process: one that waits for its next call would hold a GPU for nobody.
os.register_at_fork(after_in_child=functools.partial(die_with_parent, os.getpid()))

_BEAT_SECONDS = 2.0
Reply = tuple[str, str]  # 'event' or 'end' with the event's line, or 'beat'


@spaces.GPU(duration=lambda seconds, folder, work_seconds: seconds)
def train_slice(seconds: int, folder: str, work_seconds: float) -> Iterator[Reply]:
    """Train the run in that folder from its newest checkpoint, save after `work_seconds`, and yield what happens."""
    run, end = RunFolder(Path(folder)), threading.Event()
    at = _enter() + work_seconds
    replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
    slice_end = SliceEnd(at, lambda: end.is_set() or run.pause_file.exists())
    training = threading.Thread(target=_train_into, args=(replies, run, slice_end))
    training.start()
    try:
        while (reply := replies.get()) is not None:
            yield reply
    finally:
        end.set()
        training.join()


def _train_into(replies: "queue.SimpleQueue[Reply | None]", run: RunFolder, end: SliceEnd) -> None:
    beaten_at = 0.0

    def beat() -> None:
        nonlocal beaten_at
        if time.monotonic() - beaten_at > _BEAT_SECONDS:
            beaten_at = time.monotonic()
            replies.put(("beat", ""))

    try:
        ending = _trainer().train(
            run, lambda event: replies.put(("event", event_to_line(event))), end, beat
        )
    except (
        BaseException
    ) as error:  # the boundary: of an exception the platform passes on the name alone
        ending = failure_of(error)
    replies.put(("end", event_to_line(ending)))
    replies.put(None)


@spaces.GPU(duration=lambda seconds, message: seconds)
def compare(seconds: int, message: Message) -> Iterator[str]:
    """Replies of a comparison, as lines."""
    _enter()
    request = CompareRequest.model_validate(message["request"])
    yield from reply_lines(lambda _: _resident().compare(request, None), message)


@functools.cache
def _trainer() -> SliceTrainer:
    """Of this forked process."""
    return SliceTrainer()


@functools.cache
def _resident() -> ResidentModel:
    return ResidentModel()


_entered: list[int] = []  # the process that has entered before


def _enter() -> float:
    """At the beginning of a call. Returns the Unix time from which the platform counts: a process is forked once a
    GPU is granted, or was before."""
    stay_offline()  # what is needed was fetched before: no second of a GPU is for the network
    is_new = _entered != [os.getpid()]
    _entered[:] = [os.getpid()]
    return psutil.Process().create_time() if is_new else time.time()
