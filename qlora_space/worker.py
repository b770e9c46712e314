"""The process that does the heavy work: `python -m qlora_space.worker train RUN_FOLDER | inspect | compare | quantize`.

`train` writes events.jsonl, and any exception becomes one `failed` event. `inspect`, `compare` and `quantize` stay
warm: they read one JSON request a line from stdin and write JSON replies to stdout.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
from pydantic import BaseModel

from qlora_space.comparison import CompareRequest
from qlora_space.errors import DiskFull, QloraSpaceError
from qlora_space.events import Failed, Note, Phase, Started
from qlora_space.facts import Hardware, ModelFacts
from qlora_space.publishing import publish_run
from qlora_space.request import TrainingRequest
from qlora_space.runs import EventLog, RunFolder

Message = dict[str, Any]  # one line of a service's stdin, checked by the models inside it
Answer = Callable[[Message], Iterator[BaseModel]]
log = logging.getLogger("qlora_space.worker")


def main(arguments: list[str]) -> int:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    match arguments:
        case ["train", folder]:
            return _train(RunFolder(Path(folder)))
        case ["inspect" | "compare" | "quantize" as service]:
            return _serve(service)
    raise SystemExit(
        "usage: python -m qlora_space.worker train RUN_FOLDER | inspect | compare | quantize"
    )


def _train(run: RunFolder) -> int:
    """Run one attempt. The token comes in HF_TOKEN and leaves the environment at once."""
    token = os.environ.pop("HF_TOKEN", None)
    events = EventLog(run.events_file)
    me = psutil.Process()
    signal.signal(signal.SIGTERM, lambda *_: run.ask_to_stop(keep=True))
    # Ctrl-C in a terminal reaches the group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        place = run.plan().hardware.name
        events.append(Started(place=place, pid=me.pid, pid_start_time=me.create_time()))
        from qlora_space.train import train  # torch takes seconds; Started must not wait for it

        ending = train(run, events.append, token)
        if ending.kind == "finished":
            _publish_if_asked(run, events, token)
        events.append(ending)
    except BaseException as error:  # the boundary: whatever happened becomes one event
        log.exception("The run failed.")
        events.append(_explain(error))
        return 1
    finally:
        events.close()
    return 0


def _publish_if_asked(run: RunFolder, events: EventLog, token: str | None) -> None:
    """A push that fails takes nothing from a run that succeeded: it is said, and can be pressed again."""
    request = run.request()
    if not request.hub_model_id:
        return
    events.append(Phase(name="publish", done=0, total=1))
    try:
        done = publish_run(run, request.hub_model_id, request.hub_private_repo, token)
        events.append(Note(level="info", text=f"Published and verified: {done.url}"))
    except QloraSpaceError as error:
        text = f"The adapter was not published: {error} It is safe here: publish again from the Publish page."
        events.append(Note(level="error", text=text))


def _explain(error: BaseException) -> Failed:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = DiskFull("The disk is full.", "Free some space and start again.")
    if isinstance(error, QloraSpaceError):
        return Failed(cause=error.what, hint=error.hint)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Failed(
        cause=f"Something unexpected happened in {Path(last.filename).name}.",
        hint="Look at the log below; if it does not help, report it with this line.",
        line=_one_line(error),
    )


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500].rstrip(".")


def _serve(service: str) -> int:
    """Answer requests until stdin closes. Every answer ends with {"end": true}."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    makers = {"inspect": _inspector, "compare": _comparer, "quantize": _quantizer}
    answer = makers[service]()
    for line in sys.stdin:
        with contextlib.suppress(BrokenPipeError):
            _write_replies(answer, line, replies)
    return 0


def _inspector() -> Answer:
    """{"request", "base", "token", "allow_local", "device"} -> one Inspection."""
    from qlora_space.data import inspect_dataset
    from qlora_space.hub import fetch_tokenizer

    def answer(message: Message) -> Iterator[BaseModel]:
        request = TrainingRequest.model_validate(message["request"])
        base = ModelFacts.model_validate(message["base"])
        folder = fetch_tokenizer(base, message["token"])
        yield inspect_dataset(
            request,
            base,
            folder,
            message["token"],
            allow_local=message["allow_local"],
            device=message["device"],
        )

    return answer


def _comparer() -> Answer:
    """{"request", "token"} -> Replies."""
    from qlora_space.generate.warm import WarmModel

    warm = WarmModel()
    return lambda message: warm.replies(
        CompareRequest.model_validate(message["request"]), message["token"]
    )


def _quantizer() -> Answer:
    """{"request", "base", "hardware", "quantized_folder", "token"} -> one Quality."""
    from qlora_space.lowbit.measure import measure_base

    def answer(message: Message) -> Iterator[BaseModel]:
        yield measure_base(
            TrainingRequest.model_validate(message["request"]),
            ModelFacts.model_validate(message["base"]),
            Hardware.model_validate(message["hardware"]),
            Path(message["quantized_folder"]),
            message["token"],
        )

    return answer


def _write_replies(answer: Answer, line: str, replies: TextIO) -> None:
    try:
        for value in answer(json.loads(line)):
            replies.write(value.model_dump_json() + "\n")
    except QloraSpaceError as error:
        replies.write(
            json.dumps({"refused": [type(error).__name__, error.what, error.hint]}) + "\n"
        )
    except Exception as error:  # the boundary of a warm process: answer, and stay
        log.exception("A request failed.")
        replies.write(json.dumps({"crashed": _one_line(error)}) + "\n")
    replies.write(json.dumps({"end": True}) + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
