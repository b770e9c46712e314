"""The reader gets bytes of the dataset that was asked for, and of nothing else."""

import io
import socket
import threading
from collections.abc import Iterator

import pytest

from qlora_space.core.errors import DatasetError, HubError, RequestError
from qlora_space.data.reading.hub_files import DirectHubFiles
from qlora_space.data.reading.hub_rows import open_hub_source
from qlora_space.places.relay import HubRelay, RelayedHubFiles
from tests.fake_hub import ALICE, FakeHub


@pytest.fixture
def reader(hub: FakeHub) -> Iterator[RelayedHubFiles]:
    rows = "".join(f'{{"text": "row {n} {"x" * 4000}"}}\n' for n in range(1000))
    hub.add_dataset("alice/mine", {"train.jsonl": rows}, private=True)
    hub.add_dataset("alice/other", {"train.jsonl": rows}, private=True)
    ours, theirs = socket.socketpair()
    relay = HubRelay(ours, "alice/mine", None, lambda: DirectHubFiles(ALICE))
    threading.Thread(target=lambda: list(relay.answers()), daemon=True).start()
    yield RelayedHubFiles(theirs)
    theirs.shutdown(socket.SHUT_RDWR)


def test_rows_are_those_of_the_hub(reader: RelayedHubFiles) -> None:
    relayed = open_hub_source("alice/mine", None, None, None, reader)
    direct = open_hub_source("alice/mine", None, None, None, ALICE)
    assert list(relayed.read()) == list(direct.read())
    assert relayed.sha == direct.sha


def test_a_file_is_read_from_wherever_one_asks(reader: RelayedHubFiles) -> None:
    found = reader.find("alice/mine", None, None, None)
    (file,) = list(reader.files(found) or ())
    with file.open() as stream:
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == b'xxxxxxx"}\n'
        assert stream.seek(3_000_000) == 3_000_000
        assert len(stream.read()) == file.num_bytes - 3_000_000
        assert stream.read() == b""


def test_another_dataset_or_revision_is_not_read(hub: FakeHub, reader: RelayedHubFiles) -> None:
    found = reader.find("alice/mine", None, None, None)
    asked = len(hub.requests)
    with pytest.raises(RequestError):
        reader.find("alice/other", None, None, None)
    with pytest.raises(RequestError):
        reader.find("alice/mine", None, None, "refs/pr/1")
    for change in ({"id": "alice/other"}, {"sha": "0" * 40}):
        with pytest.raises(RequestError):
            reader.files(type(found)(**{**vars(found), **change}))
    with pytest.raises(HubError):
        reader.read(999, 0, 10)
    assert len(hub.requests) == asked


def test_an_error_of_the_hub_is_the_readers_too(reader: RelayedHubFiles) -> None:
    with pytest.raises(DatasetError, match="has no split 'gone'"):
        reader.find("alice/mine", None, "gone", None)
