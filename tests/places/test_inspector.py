"""The pool of one-shot children: what it refuses, who waits for whom, and that nothing outlives anything."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.numpy import save_file

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import BackendError, DatasetError, ModelError
from qlora_space.core.request import TrainingRequest
from qlora_space.places.inspector import InspectorLimits, InspectorPool
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.places.bombs import inspections, zygotes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits")
DEMO = TrainingRequest(max_rows=20)
PATIENT = InspectorLimits(wait_seconds=60.0, answer_seconds=120.0)


def question(dataset: str = "demo", base: str = "demo") -> dict[str, Any]:
    asked = DEMO.model_copy(update={"dataset": dataset, "base": base})
    request = asked.model_dump(mode="json")
    return {"request": request, "token": None, "allow_local": True, "device": "cpu"}


def endless(folder: Path) -> str:
    """A dataset that nobody finishes to read: a pipe that nobody writes to."""
    os.mkfifo(folder / "rows.jsonl")
    return str(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InspectorPool]:
    """One for all tests: whatever one does to its child, it answers the next."""
    pool = InspectorPool(tmp_path_factory.mktemp("logs"), PATIENT)
    yield pool
    pool.close()


def until(is_true: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """A child of the test before may be about to end."""
    until(lambda: not inspections())


class Asker:
    """Asks in a thread of its own; `outcome` is the replies or the error."""

    def __init__(
        self, pool: InspectorPool, message: dict[str, Any], visitor: str = "", page: str = ""
    ) -> None:
        self.outcome: Any = None
        self._ask = lambda: pool.ask(message, visitor, page)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._ask()
        except Exception as error:
            self.outcome = error

    def wait(self) -> Any:
        self._thread.join(60)
        return self.outcome


def test_facts_and_inspection_come_from_a_child_that_is_gone_after_it(pool: InspectorPool) -> None:
    facts, inspection = pool.ask(question())
    assert facts["id"] == "demo"
    assert inspection["rows_looked_at"] == 20
    until(lambda: not inspections())
    only_facts = {k: v for k, v in question().items() if k != "device"}
    assert pool.ask(only_facts) == [facts]


def test_a_refusal_comes_through_as_what_it_was(pool: InspectorPool, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jsonl") as caught:
        pool.ask(question(str(tmp_path / "gone.jsonl")))
    assert caught.value.hint
    with pytest.raises(ModelError, match=r"config\.json"):
        pool.ask(question(base=str(tmp_path)))


def test_a_request_that_crashes_is_said(pool: InspectorPool) -> None:
    with pytest.raises(BackendError, match=r"The inspect process failed: .*\.") as caught:
        pool.ask({"request": {"nonsense": 1}, "token": None})
    assert "\n  File" not in str(caught.value)


def test_a_child_has_no_token_in_its_environment_and_limits_that_the_kernel_keeps(
    pool: InspectorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def are_limited() -> bool:
        """A fork limits itself a moment after it is there."""
        found = inspections()
        statuses = [Path(f"/proc/{c.pid}/status").read_text() for c in found]
        is_private = all("NoNewPrivs:\t1" in status for status in statuses)
        return (
            bool(found)
            and is_private
            and all(c.rlimit(psutil.RLIMIT_CORE) == (0, 0) for c in found)
        )

    asker = Asker(pool, question(endless(tmp_path)) | {"token": "hf_secretOfAVisitor"})
    until(are_limited)
    for child in inspections():
        assert not any("hf_secret" in value for value in child.environ().values())
        assert "hf_secret" not in " ".join(child.cmdline())
        assert child.rlimit(psutil.RLIMIT_DATA)[1] < 2 * 2**30
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_CPU)[0] < 100
        assert child.rlimit(psutil.RLIMIT_FSIZE)[1] < 2**30
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
    zygotes()[0].children()[0].kill()
    assert isinstance(asker.wait(), BackendError)


def test_a_child_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    pool = InspectorPool(tmp_path / "logs", InspectorLimits(answer_seconds=8))
    before = time.monotonic()
    with pytest.raises(BackendError, match="no answer within 8 seconds"):
        pool.ask(question(endless(tmp_path)))
    assert time.monotonic() - before < 30
    until(lambda: not inspections(), 30)
    pool.close()


def test_a_child_that_dies_is_said_and_the_next_is_answered(
    pool: InspectorPool, tmp_path: Path
) -> None:
    asker = Asker(pool, question(endless(tmp_path)))
    until(inspections)
    zygotes()[0].children()[0].send_signal(signal.SIGXCPU)
    assert "takes more computing" in str(asker.wait())
    assert len(pool.ask(question())) == 2


def test_a_zygote_that_dies_is_replaced(pool: InspectorPool) -> None:
    pool.ask(question())
    (zygote,) = zygotes()
    zygote.kill()
    zygote.wait(5)
    assert len(pool.ask(question())) == 2


def test_a_newer_request_of_a_page_takes_the_place_of_the_older(
    pool: InspectorPool, tmp_path: Path
) -> None:
    older = Asker(pool, question(endless(tmp_path)), "ann", "page 1")
    until(inspections)
    assert len(pool.ask(question(), "ann", "page 1")) == 2
    assert "newer" in str(older.wait())
    until(lambda: not inspections())


def test_a_visitor_cannot_take_the_places_of_others(tmp_path: Path) -> None:
    limits = InspectorLimits(children=2, wait_seconds=0.5, answer_seconds=60)
    pool = InspectorPool(tmp_path / "logs", limits)
    slow = endless(tmp_path)
    greedy = [Asker(pool, question(slow), "ann", f"page {n}") for n in range(5)]
    until(inspections)
    assert len(pool.ask(question(), "bob")) == 2
    pool.close()
    sentences = sorted(str(asker.wait()) for asker in greedy)
    assert sum("several inspections" in s or "are busy" in s for s in sentences) == 4


def test_a_full_pool_says_that_it_is_busy_and_one_who_waits_is_next(tmp_path: Path) -> None:
    limits = InspectorLimits(children=1, wait_seconds=1.0, answer_seconds=60)
    pool = InspectorPool(tmp_path / "logs", limits)
    slow = Asker(pool, question(endless(tmp_path)), "ann", "page")
    until(inspections)
    with pytest.raises(BackendError, match="busy"):
        pool.ask(question(), "bob")
    pool.close()
    slow.wait()
    assert len(pool.ask(question(), "bob")) == 2
    pool.close()


def test_closing_ends_all(tmp_path: Path) -> None:
    pool = InspectorPool(tmp_path / "logs", PATIENT)
    others = {zygote.pid for zygote in zygotes()}
    pool.warm_up()
    until(
        lambda: {zygote.pid for zygote in zygotes()} - others
    )  # its name is this process's at first
    (started,) = [zygote for zygote in zygotes() if zygote.pid not in others]
    pool.close()
    assert not started.is_running()
    pool.close()


def test_a_home_that_cannot_be_written_is_a_sentence() -> None:
    pool = InspectorPool(Path("/proc/nowhere/logs"))
    with pytest.raises(BackendError, match=r"/proc/nowhere.*QLORA_SPACE_HOME"):
        pool.ask(question())


_SERVER = """
import sys, threading, time
from pathlib import Path
from tests.places.test_inspector import endless, question
from qlora_space.places.inspector import InspectorPool

folder = Path(sys.argv[1])
pool = InspectorPool(folder)
# A request's thread may end before its child: the zygote must not depend on it.
for visitor in ("ann", "bob"):
    (folder / visitor).mkdir()
    threading.Thread(target=pool.ask, args=(question(endless(folder / visitor)), visitor)).start()
time.sleep(600)
"""


def test_nothing_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(tmp_path)])
    until(lambda: len(psutil.Process(server.pid).children(recursive=True)) >= 5, 60)
    left = psutil.Process(server.pid).children(recursive=True)
    server.kill()
    server.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


def test_rows_of_a_private_dataset_reach_a_reader_that_has_no_token(
    pool: InspectorPool, hub: FakeHub
) -> None:
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(50)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    hub.add_dataset("alice/secret", {"train.jsonl": lines}, private=True)
    _, inspection = pool.ask(question("alice/secret") | {"token": ALICE})
    assert inspection["rows_looked_at"] == 20
    assert inspection["preview"][1]["output"] == "It is 1."
    for token in (None, BOB):
        with pytest.raises(DatasetError, match="does not exist or is private"):
            pool.ask(question("alice/secret") | {"token": token})


def test_a_dataset_that_only_datasets_can_read_is_inspected_too(
    pool: InspectorPool, hub: FakeHub
) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: data.json\n  field: rows\n---\n"
    rows = json.dumps({"rows": [{"instruction": f"What is {n}?", "output": "A"} for n in range(9)]})
    hub.add_dataset("alice/field", {"data.json": rows, "README.md": card})
    _, inspection = pool.ask(question("alice/field"))
    assert inspection["rows_looked_at"] == 9


def test_a_base_of_the_hub_is_fetched_by_the_child(pool: InspectorPool, hub: FakeHub) -> None:
    hub.add_model("alice/base", BASE_FOLDER, private=True)
    facts, inspection = pool.ask(question(base="alice/base") | {"token": ALICE})
    assert facts["source"] == "hub"
    assert inspection["rows_looked_at"] == 20


def test_an_adapter_is_read_by_a_child_that_sees_only_its_folder(
    pool: InspectorPool, tmp_path: Path
) -> None:
    config, folder = tmp_path / "secret.json", tmp_path / "adapter"
    folder.mkdir()
    save_file({}, folder / "adapter_model.safetensors")
    config.write_text('{"base_model_name_or_path": "owner/base", "revision": "v2"}')
    (folder / "adapter_config.json").write_bytes(config.read_bytes())
    asked = {"adapter": "owner/adapter", "folder": str(folder)}
    (facts,) = pool.ask(asked)
    assert (facts["base"], facts["base_revision"]) == ("owner/base", "v2")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(config)
    with pytest.raises(BackendError, match="The inspect process failed: PermissionError"):
        pool.ask(asked)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").write_text("[" * 10**6)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        pool.ask(asked)
