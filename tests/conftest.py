"""The Hub of every test is a fake one on loopback. Clients freeze its address at import.

One thread a process: the models are so small that threads only wait for each other, and on a busy
machine that takes ten times as long (docs/LOG.md, "Two trainings on two cores").
"""

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fake_hub import FakeHub

gc.disable()  # until everything is imported; as in qlora_space/places/worker.py
os.environ.setdefault("OMP_NUM_THREADS", "1")  # libraries read it when they are loaded
settings.register_profile("busy machine", deadline=None)  # an example may take long there
settings.load_profile("busy machine")
_HUB = FakeHub().start()
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": tempfile.mkdtemp(prefix="qlora-space-hf-"),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a browser, which take longest, first: `make test` runs two files at a time, and none is left alone."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """An empty Hub; users alice (write), bob (read) and carol (fine-grained without write)."""
    from huggingface_hub import HfFileSystem

    _HUB.reset()
    HfFileSystem.clear_instance_cache()  # datasets would see the repositories of the test before
    yield _HUB
    _HUB.reset()
