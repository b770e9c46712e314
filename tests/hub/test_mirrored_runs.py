"""Copies of runs are found again by an account that has nothing else left, and nothing but its own copies is."""

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from qlora_space.core.errors import HubError
from qlora_space.hub.connection import is_repo_id
from qlora_space.hub.mirror import fetch_copy, push_copy
from qlora_space.hub.mirrored_runs import MIRROR_TAG, mirror_name, mirrored_runs
from qlora_space.runs import RunFolder
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.hub.test_mirror import checkpoint
from tests.runs.folders import demo_run

OURS = f"---\ntags: [{MIRROR_TAG}]\nqlora_space: {{run_id: {'a' * 32}, name: x, step: 3}}\n---\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = demo_run(tmp_path / "here")
    run.events_file.write_bytes(b'{"seq":0}\n')
    checkpoint(run, 2)
    return run


def test_after_a_lost_disk_the_account_finds_its_copies_and_fetches_one(
    run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    run.rename("Q: <b>what</b> & '---'")
    repo = mirror_name("alice", run.name())
    push_copy(run, repo, ALICE)
    (found,) = mirrored_runs("alice", ALICE)
    assert (found.repo, found.run_id, found.name) == (repo, run.id, run.name())
    assert (found.step, found.done) == (2, False)
    assert found.updated_at is not None
    assert fetch_copy(found.repo, tmp_path / "there", ALICE).id == run.id


def test_a_copy_says_how_far_the_run_is_and_the_newest_is_first(
    run: RunFolder, hub: FakeHub
) -> None:
    for repo in ("alice/one", "alice/two"):
        push_copy(run, repo, ALICE)
    checkpoint(run, 4)
    run.report_file.write_text("{}")
    push_copy(run, "alice/one", ALICE)
    later = hub.repo("model", "alice/one")
    later.commits.append(replace(later.head, time=later.head.time + timedelta(seconds=5)))
    found = [(copy.repo, copy.step, copy.done) for copy in mirrored_runs("alice", ALICE)]
    assert found == [("alice/one", 4, True), ("alice/two", 2, False)]


def test_a_copy_keeps_its_card_over_later_copies(run: RunFolder, hub: FakeHub) -> None:
    push_copy(run, "alice/copy", ALICE)
    push_copy(run, "alice/copy", ALICE)
    assert MIRROR_TAG in hub.repo("model", "alice/copy").files["README.md"].decode()


def test_what_others_published_or_tagged_is_not_listed(run: RunFolder, hub: FakeHub) -> None:
    hub.add_model("alice/public", {"README.md": OURS})
    hub.add_model("bob/copy", {"README.md": OURS}, private=True)
    hub.add_model("wonderland/copy", {"README.md": OURS}, private=True)
    hub.add_model("alice/other", {"README.md": "---\ntags: [x]\n---\n"}, private=True)
    for name, facts in {"a": "3", "b": "{run_id: ../x}", "c": "{run_id: 3}"}.items():
        card = f"---\ntags: [{MIRROR_TAG}]\nqlora_space: {facts}\n---\n"
        hub.add_model(f"alice/bad-{name}", {"README.md": card}, private=True)
    assert mirrored_runs("alice", ALICE) == []
    assert mirrored_runs("alice", BOB) == []
    hub.add_model("alice/good", {"README.md": OURS}, private=True)
    assert [copy.repo for copy in mirrored_runs("alice", ALICE)] == ["alice/good"]


def test_a_hub_that_does_not_answer_is_a_sentence(hub: FakeHub, waits: list) -> None:
    hub.fail(500, path="/api/models", times=9)
    with pytest.raises(HubError, match="alice could not be read from the Hub"):
        mirrored_runs("alice", ALICE)


@pytest.mark.parametrize("name", ["My run, 2nd", "x" * 300, "", "名前", "../..", "a--b.git"])
def test_a_proposed_name_is_one_that_the_hub_takes_and_never_the_same_twice(name: str) -> None:
    proposed = mirror_name("alice", name)
    assert is_repo_id(proposed)
    assert re.fullmatch(r"alice/[a-z0-9-]+-mirror-[0-9a-f]{8}", proposed)
    assert proposed != mirror_name("alice", name)
