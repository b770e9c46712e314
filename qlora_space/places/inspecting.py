"""What a child of the inspector answers, and the process of its own in which strangers' files are parsed.

The child has the visitor's token and the network; it fetches, and parses only JSON. Its reader has neither: it sees the
tokenizer's folder and the dataset's file, may write nothing and open no socket, and gets bytes of the Hub through the
child (relay.py). Chat templates run in a process of the reader's own (data/template/process.py).
"""

import contextlib
import json
import mimetypes
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from huggingface_hub import constants
from pydantic import BaseModel

from qlora_space.core import confinement
from qlora_space.core.errors import error_named
from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Budget, inspect_dataset
from qlora_space.data.reading.hub_rows import HubFiles
from qlora_space.data.reading.sources import is_on_hub
from qlora_space.data.template.process import template_process
from qlora_space.hub import fetch_tokenizer, model_facts
from qlora_space.hub.adapter_config import read_adapter
from qlora_space.hub.published_run import read_record
from qlora_space.places.relay import HubRelay, NotHere, RelayedHubFiles
from qlora_space.places.replies import Ended, Message, cause_of_death, write_replies

_HTTPS_PORTS = (443, 80, 53)  # files lie on other hosts than the Hub; the last is for long names
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")
_SYSTEM_FILES = ("/etc", "/run/systemd/resolve")  # names of hosts, certificates
_SHARED_MEMORY = "/dev/shm"  # `datasets` has its place in a stream there


def import_all() -> None:
    """What children need and would import, or read of this system, late."""
    import openpyxl  # noqa: F401
    import transformers.utils.chat_template_utils
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    assert transformers.utils.chat_template_utils.render_jinja_template
    mimetypes.init()  # openpyxl asks it


@dataclass(frozen=True)
class Reader:
    """The process that parses; started before the child knows anything. `connection` is the child's end."""

    pid: int
    connection: socket.socket

    def wait(self) -> str:
        """Why it ended, '' if it ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            _, status = os.waitpid(self.pid, 0)
            return cause_of_death(status)
        return ""


def start_reader() -> Reader:
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        ours.close()
        _read_in_fork(theirs, parent)
    theirs.close()
    return Reader(pid, ours)


def answer(message: Message, reader: Reader) -> Iterator[BaseModel]:
    """{"request", "token", "allow_local", "device"} -> ModelFacts, Inspection. Without "device" only the facts.

    {"adapter", "folder"} -> AdapterFacts. {"record", "file"} -> PublishedRun.
    """
    if "record" in message:
        file = Path(message["file"])
        _confine_to(file.parent)
        yield read_record(message["record"], file)
        return
    if "adapter" in message:
        folder = Path(message["folder"])
        _confine_to(folder)
        yield read_adapter(message["adapter"], folder)
        return
    request = TrainingRequest.model_validate(message["request"])
    token = message["token"]
    if "device" in message and is_on_hub(request.dataset):
        _direct(token)  # `datasets` makes folders of its own when it is imported
    _confine_child(request, is_local=message.get("allow_local", True))
    base = model_facts(request.base, request.base_revision, token)
    yield base
    if "device" not in message:
        return
    folder = fetch_tokenizer(base, token)
    question = {
        "request": message["request"],
        "base": base.model_dump(mode="json"),
        "folder": str(folder),
        "allow_local": message["allow_local"],
        "device": message["device"],
    }
    reader.connection.sendall(json.dumps(question).encode() + b"\n")
    relay = HubRelay(
        reader.connection, request.dataset, request.dataset_revision, lambda: _direct(token)
    )
    for line in relay.answers():
        reply = json.loads(line)
        if "not_here" in reply:
            yield _inspect(question, token)
            return
        if "end" in reply:
            return
        _raise_failure(reply)
        yield Inspection.model_validate(reply)
    raise Ended(reader.wait() or "crash")


def _raise_failure(reply: dict[str, Any]) -> None:
    if "refused" in reply:
        raise error_named(*reply["refused"])
    if "ended" in reply:
        raise Ended(reply["ended"])
    if "crashed" in reply:
        raise RuntimeError(reply["crashed"])


def _direct(token: str | None) -> HubFiles:
    from qlora_space.data.reading.hub_files import DirectHubFiles

    return DirectHubFiles(token)


def _inspect(question: Message, access: HubFiles | str | None) -> Inspection:
    return inspect_dataset(
        TrainingRequest.model_validate(question["request"]),
        ModelFacts.model_validate(question["base"]),
        Path(question["folder"]),
        access,
        Budget(allow_cpu=confinement.limit_cpu),
        allow_local=question["allow_local"],
        device=question["device"],
    )


def _read_in_fork(connection: socket.socket, parent: int) -> NoReturn:
    """Never returns."""
    try:
        confinement.die_with_parent(parent)
        template_process().start_by_fork()
        line = connection.makefile("r").readline()
        if line:
            _answer_child(connection, json.loads(line))
    finally:
        sys.stderr.flush()
        os._exit(0 if sys.exc_info()[0] is None else 1)


def _answer_child(connection: socket.socket, question: Message) -> None:
    _confine_reader(question)
    hub_files = RelayedHubFiles(connection)

    def inspection(_: Message) -> Iterator[BaseModel]:
        yield _inspect(question, hub_files)

    try:
        write_replies(inspection, question, hub_files.send)
    except NotHere:
        hub_files.send('{"not_here": true}\n')


def _confine_child(request: TrainingRequest, is_local: bool) -> None:
    """The Hub's cache may be written; of this machine's own files only the base and the dataset are read."""
    local = (request.base, request.dataset) if is_local else ()
    caches = (
        constants.HF_HUB_CACHE,
        constants.HF_XET_CACHE,
        constants.HF_ASSETS_CACHE,
        _data_cache(),
    )
    for cache in caches:
        with contextlib.suppress(OSError):
            Path(cache).mkdir(parents=True, exist_ok=True)
    system = map(Path, _SYSTEM_FILES)
    read = (*confinement.program_folders(), *system, *_existing(local))
    write = map(Path, (*caches, _SHARED_MEMORY, os.devnull))
    confinement.allow_files(read, write, ports=(*_hub_ports(), *_HTTPS_PORTS))


def _confine_reader(question: Message) -> None:
    """No network, nothing written, and nothing read but what is inspected."""
    _confine_to(
        Path(question["folder"]),
        *(_existing((question["request"]["dataset"],)) if question["allow_local"] else ()),
    )


def _confine_to(folder: Path, *others: Path) -> None:
    # In the cache a file is a link to ../../blobs.
    inspected = (folder.parents[1] if folder.parent.name == "snapshots" else folder).resolve()
    read = (*confinement.program_folders(), inspected, *others)
    confinement.allow_files(read, (Path(os.devnull),), ports=())
    confinement.forbid_sockets_and_programs()


def _existing(names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            path = Path(name).expanduser().resolve()
            if path.exists():
                yield path


def _hub_ports() -> Iterator[int]:
    addresses = [constants.ENDPOINT, *filter(None, map(os.environ.get, _PROXIES))]
    for address in addresses:
        with contextlib.suppress(ValueError):
            if port := urlsplit(address).port:
                yield port


def _data_cache() -> str:
    return os.environ.get("HF_DATASETS_CACHE") or str(Path(constants.HF_HOME) / "datasets")
