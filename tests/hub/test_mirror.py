"""A run is copied to a private repository and fetched byte for byte, or refused; training never waits for it."""

import json
import math
import time
from pathlib import Path

import pytest

from qlora_space.core.errors import HubError, RunError
from qlora_space.hub.mirror import Mirror, check_can_mirror, fetch_copy, push_copy
from qlora_space.runs import PushRequest, RunFolder, UnsentPush
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.runs.folders import demo_run

REPO = "alice/copy"


def checkpoint(run: RunFolder, step: int, best: int | None = None) -> None:
    folder = run.checkpoint_folder(step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights of %d" % step)
    (folder / "state.json").write_text(json.dumps({"step": step, "best_step": best}))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = demo_run(tmp_path / "here")
    run.events_file.write_bytes(b'{"seq":0}\n{"seq":1')
    run.data_folder.mkdir()
    (run.data_folder / "train.arrow").write_bytes(b"rows")
    checkpoint(run, 2)
    return run


def files_of(run: RunFolder) -> dict[str, bytes]:
    found = (p for p in run.path.rglob("*") if p.is_file())
    return {p.relative_to(run.path).as_posix(): p.read_bytes() for p in found}


def test_a_copied_run_is_fetched_byte_for_byte_without_a_half_written_event(
    run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    push_copy(run, REPO, ALICE)
    assert hub.repo("model", REPO).private
    back = fetch_copy(REPO, tmp_path / "there", ALICE)
    assert back.id == run.id
    assert files_of(back) == files_of(run) | {"events.jsonl": b'{"seq":0}\n'}
    assert not [p for p in run.path.iterdir() if p.name.startswith(".mirror")]
    with pytest.raises(RunError, match="on this machine already"):
        fetch_copy(REPO, tmp_path / "there", ALICE)


def test_a_copy_is_one_commit_with_the_newest_and_the_best_checkpoint(
    run: RunFolder, hub: FakeHub
) -> None:
    push_copy(run, REPO, ALICE)
    before = len(hub.repo("model", REPO).commits)
    checkpoint(run, 4, best=2)
    push_copy(run, REPO, ALICE)
    assert "checkpoints/step-000002/state.json" in hub.repo("model", REPO).files
    checkpoint(run, 6, best=6)
    push_copy(run, REPO, ALICE)
    repo = hub.repo("model", REPO)
    assert len(repo.commits) == before + 2
    steps = {name.split("/")[1] for name in repo.files if name.startswith("checkpoints/")}
    assert steps == {"step-000006"}


@pytest.mark.parametrize("path", ["/lfs", "/commit/"])
@pytest.mark.parametrize("kind", [503, "drop", "lose"])
def test_a_copy_that_breaks_off_leaves_the_one_before_or_is_whole(
    run: RunFolder, hub: FakeHub, tmp_path: Path, waits: list, path: str, kind: int | str
) -> None:
    push_copy(run, REPO, ALICE)
    checkpoint(run, 4)
    hub.fail(kind, path=path, times=9)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="could not be updated"):
        push_copy(run, REPO, ALICE)
    hub.faults.clear()
    back = fetch_copy(REPO, tmp_path / "there", ALICE)
    assert back.resume_step() == (4 if (path, kind) == ("/commit/", "lose") else 2)
    push_copy(run, REPO, ALICE)
    assert fetch_copy(REPO, tmp_path / "later", ALICE).resume_step() == 4


def test_whoever_wrote_a_copy_pushes_nothing_in_the_name_of_whoever_fetches_it(
    run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    taken = PushRequest(repo="alice/famous", private=False, replace=True)
    run.keep_unsent_push(UnsentPush(request=taken, tried_at=0.0))
    push_copy(run, REPO, ALICE)
    waiting = fetch_copy(REPO, tmp_path / "there", ALICE).unsent_push()
    assert waiting is not None
    assert (waiting.request, waiting.is_refused, waiting.next_at) == (taken, True, math.inf)
    run.unsent_push_file.write_text("{}")
    push_copy(run, REPO, ALICE)
    assert not fetch_copy(REPO, tmp_path / "later", ALICE).unsent_push_file.exists()


def test_a_changed_file_is_refused_and_nothing_is_left(
    run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    push_copy(run, REPO, ALICE)
    repo, name = hub.repo("model", REPO), "checkpoints/step-000002/adapter_model.safetensors"
    stored = dict(repo.head.files)
    stored[name] = type(stored[name])(b"weights of 3", is_lfs=True)
    repo.commit(stored, "Tampered")
    with pytest.raises(HubError, match=r"adapter_model\.safetensors in alice/copy is not what"):
        fetch_copy(REPO, tmp_path / "there", ALICE)
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("name", ["../../name", "data/../../x", "stop", "/etc/x", ".bashrc"])
def test_a_manifest_cannot_name_a_path_outside_the_run(
    run: RunFolder, hub: FakeHub, tmp_path: Path, name: str
) -> None:
    push_copy(run, REPO, ALICE)
    repo = hub.repo("model", REPO)
    record = json.loads(repo.files["mirror.json"])
    record["files"][name] = {"bytes": 0, "sha256": ""}
    stored = dict(repo.head.files)
    stored["mirror.json"] = type(stored["mirror.json"])(json.dumps(record).encode(), is_lfs=False)
    repo.commit(stored, "Tampered")
    with pytest.raises(HubError, match="is no copy of a run"):
        fetch_copy(REPO, tmp_path / "there", ALICE)


def test_a_public_repository_or_one_with_other_files_is_refused(
    run: RunFolder, hub: FakeHub
) -> None:
    hub.add_model("alice/public", {})
    hub.add_model("alice/full", {"model.safetensors": b"precious"}, private=True)
    for check in (check_can_mirror, lambda repo, token: push_copy(run, repo, token)):
        with pytest.raises(HubError, match="can be read by everyone"):
            check("alice/public", ALICE)
        with pytest.raises(HubError, match="holds files that are not from this run"):
            check("alice/full", ALICE)
        with pytest.raises(HubError, match="may only read"):
            check("bob/copy", BOB)
    assert hub.repo("model", "alice/full").files == {"model.safetensors": b"precious"}
    check_can_mirror("alice/new", ALICE)


def wait_until(is_true) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_dead_network_is_reported_once_and_the_copy_is_made_when_it_is_back(
    run: RunFolder, hub: FakeHub
) -> None:
    reported: list[tuple[str, bool]] = []
    hub.fail("drop", times=10_000)
    began = time.monotonic()
    mirror = Mirror(run, REPO, ALICE, lambda *note: reported.append(note), 0.01, 0.01)
    assert time.monotonic() - began < 5
    wait_until(lambda: len(hub.requests) > 20)
    hub.faults.clear()
    wait_until(lambda: len(reported) == 2)
    assert [is_failure for _, is_failure in reported] == [True, False]
    assert "does not answer" in reported[0][0]
    checkpoint(run, 4)
    mirror.close()
    assert "checkpoints/step-000004/state.json" in hub.repo("model", REPO).files
    assert ALICE not in str(reported)


def test_a_sign_in_that_ended_is_reported_and_a_new_one_goes_on_with_the_copy_at_once(
    run: RunFolder, hub: FakeHub
) -> None:
    reported: list[tuple[str, bool]] = []
    mirror = Mirror(run, REPO, ALICE, lambda *note: reported.append(note), 0.01, 600.0)
    wait_until(lambda: ("model", REPO) in hub.repos and hub.repo("model", REPO).files)
    again = "hf_aliceAgainForTestsOnly"
    hub.users[again] = hub.users.pop(ALICE)
    checkpoint(run, 4)
    wait_until(lambda: reported)
    mirror.renew_token(again)
    wait_until(lambda: len(reported) == 2)
    assert [is_failure for _, is_failure in reported] == [True, False]
    assert "Sign in again" in reported[0][0]
    assert "checkpoints/step-000004/state.json" in hub.repo("model", REPO).files
    mirror.close()
    assert not [token for token in (ALICE, again) if token in str(reported)]
