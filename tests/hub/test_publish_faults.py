"""A fault at each request of a push: the Hub has all of it or nothing, never twice, and the run sends it again.

Somebody who looks every 10 ms never sees a repository that is half there.
"""

import http.client
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.core.errors import HubError, HubUnavailable, NotSignedIn
from qlora_space.hub.adapter_files import files_to_publish
from qlora_space.hub.publish_run import publish_run
from qlora_space.runs import PushRequest, RunFolder
from tests.fake_hub import ALICE, ONLOOKER, FakeHub, FaultKind, Repo
from tests.hub.conftest import report_of
from tests.runs.folders import demo_run

pytestmark = pytest.mark.timeout(30)  # a push that waits for an answer forever is a failure
NAME = "alice/new"
RESET = {"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
FAULTS: list[FaultKind] = [500, 502, 503, 429, 401, 403, 409, 413, "drop", "cut", "stall", "lose"]
LASTING: list[FaultKind] = [500, 429, 401, "drop", "cut", "lose"]
OF_A_NEW_ONE, OF_ONE_MORE_COMMIT = 12, 10  # requests
PASSING = (500, 502, 503, 429, "drop", "cut", "stall")
CELLS: list[str] = []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> RunFolder:
    """A finished run with a real adapter."""
    found = demo_run(tmp_path_factory.mktemp("home"))
    shutil.copytree(adapter_folder, found.adapter_folder)
    found.report_file.write_text(report_of().model_dump_json())
    return found


@pytest.fixture(autouse=True)
def forgotten(run: RunFolder) -> Iterator[None]:
    yield
    run.forget_unsent_push()
    run.publications_file.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setattr("qlora_space.hub.connection._TIMEOUT_SECONDS", 0.3)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", 0.3)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", waits.append)


class Onlooker:
    """Asks for the repository every 10 ms as nobody in particular, and keeps each set of files that it saw."""

    def __init__(self, hub: FakeHub) -> None:
        self._address, self._over = hub.url.removeprefix("http://"), threading.Event()
        self.seen: set[frozenset[str]] = set()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Onlooker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        connection = http.client.HTTPConnection(self._address)
        while not self._over.wait(0.01):
            connection.request("GET", f"/api/models/{NAME}", headers={"User-Agent": ONLOOKER})
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status == 200:
                self.seen.add(frozenset(s["rfilename"] for s in body["siblings"]))
        connection.close()


def report_another(run: RunFolder) -> None:
    """So that card and record differ from what was published."""
    steps = RunFolder(run.path).report().steps  # type: ignore[union-attr]
    run.report_file.write_text(report_of(steps=steps + 1).model_dump_json())


def names_of(run: RunFolder) -> set[str]:
    files = files_to_publish(run.adapter_folder, "", "{}", run.id)
    return {*(file.name for file in files), ".gitattributes"}


def content(repo: Repo, run: RunFolder) -> set[str]:
    """The names of the files that hold what the run's folder holds; peft's card there is not published."""
    files = {p.name: p.read_bytes() for p in run.adapter_folder.iterdir() if p.suffix != ".md"}
    return {name for name, data in repo.files.items() if data == files.get(name, data)}


def publish(run: RunFolder, request: PushRequest) -> None:
    """As another process does that finds the run folder."""
    unsent = run.unsent_push()
    publish_run(RunFolder(run.path), unsent.request if unsent else request, ALICE)


def push_through(hub: FakeHub, run: RunFolder, kind: FaultKind, nth: int, times: int) -> bool:
    """Publish with that fault, and again without if it failed; whether it failed."""
    adapter = {p.name: p.read_bytes() for p in run.adapter_folder.iterdir()}
    before = {key: len(repo.commits) for key, repo in hub.repos.items()}
    hub.fail(kind, nth=nth, times=times, headers=RESET if kind == 429 else {})
    request = PushRequest(repo=NAME, private=False)
    error = failure_of(run, request)
    if error is not None:
        assert error.hint
        assert_whole_or_untouched(hub, run, before)
        unsent, is_passing = run.unsent_push(), isinstance(error, HubUnavailable | NotSignedIn)
        assert unsent
        assert unsent.is_refused is not is_passing
        hub.faults.clear()
        publish(run, request)
    assert {p.name: p.read_bytes() for p in run.adapter_folder.iterdir()} == adapter
    assert run.unsent_push() is None
    return error is not None


def failure_of(run: RunFolder, request: PushRequest) -> HubError | None:
    try:
        publish(run, request)
    except HubError as error:
        return error
    return None


def assert_whole_or_untouched(hub: FakeHub, run: RunFolder, before: dict) -> None:
    repo = hub.repos.get(("model", NAME))
    if repo is None:
        return
    if len(repo.commits) == before.get(("model", NAME), 1):
        assert before or (repo.private and set(repo.files) == {".gitattributes"})
    else:
        assert names_of(run) <= content(repo, run)


def assert_done(hub: FakeHub, run: RunFolder, commits: int) -> None:
    """All there with the right hashes, for all to see, in one commit."""
    repo = hub.repo("model", NAME)
    assert names_of(run) <= content(repo, run)
    noted = run.publications()[-1]
    assert noted.commit == repo.head.sha
    assert len(repo.commits) == commits
    assert repo.private is noted.stayed_private


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("nth", range(1, OF_A_NEW_ONE + 1))
def test_a_fault_at_any_request_of_a_first_push(
    hub: FakeHub, run: RunFolder, waits: list[float], nth: int, kind: FaultKind
) -> None:
    with Onlooker(hub) as onlooker:
        failed = push_through(hub, run, kind, nth, times=1)
    assert_done(hub, run, commits=2)
    assert all(names_of(run) <= names for names in onlooker.seen)
    assert not (failed and kind in PASSING), "one passing fault is got over"
    stays_private = (nth, kind) == (OF_A_NEW_ONE, 403)  # all there, and may not be shown to all
    assert run.publications()[-1].stayed_private is stays_private
    assert kind != 429 or 55.0 in waits or 56.0 in waits, "the Hub's own waiting time"
    CELLS.append("first")


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("nth", range(1, OF_ONE_MORE_COMMIT + 1))
def test_a_fault_at_any_request_of_one_more_commit(
    hub: FakeHub, run: RunFolder, nth: int, kind: FaultKind
) -> None:
    publish_run(run, PushRequest(repo=NAME, private=False), ALICE)
    report_another(run)
    hub.requests.clear()
    with Onlooker(hub) as onlooker:
        failed = push_through(hub, run, kind, nth, times=1)
    assert_done(hub, run, commits=3)
    assert all(names_of(run) <= names for names in onlooker.seen)
    assert not (failed and kind in PASSING)
    CELLS.append("more")


@pytest.mark.parametrize("kind", LASTING)
@pytest.mark.parametrize("nth", range(1, OF_A_NEW_ONE + 1))
def test_a_fault_that_lasts(hub: FakeHub, run: RunFolder, nth: int, kind: FaultKind) -> None:
    with Onlooker(hub) as onlooker:
        push_through(hub, run, kind, nth, times=10_000)
    assert_done(hub, run, commits=2)
    assert all(names_of(run) <= names for names in onlooker.seen)
    CELLS.append("lasting")


def test_the_matrix_reaches_the_last_request_of_a_push(hub: FakeHub, run: RunFolder) -> None:
    publish(run, PushRequest(repo=NAME, private=False))
    assert len(hub.requests) == OF_A_NEW_ONE
    report_another(run)
    publish(run, PushRequest(repo=NAME, private=False))
    assert len(hub.requests) == OF_A_NEW_ONE + OF_ONE_MORE_COMMIT
    sys.stdout.write(f"{len(CELLS)} cells passed in this process\n")
