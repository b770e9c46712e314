"""A visitor of a Space whose disk may be lost: runs are copied to their account, and come back from it."""

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_space.app.copies import copies_not_here, may_keep_copies
from qlora_space.core.limits import Limits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import ANONYMOUS, THIS_MACHINE, Visitor
from qlora_space.hub.mirror import push_copy
from tests.app.ui.fake import FakeActions
from tests.fake_hub import ALICE, FakeHub
from tests.runs.folders import demo_run

HER = Visitor("hub:alice", ALICE, name="alice", scope="openid contribute-repos")


@pytest.fixture
def space(tmp_path: Path) -> FakeActions:
    limits = Limits(live_runs=9, waiting_runs=9, min_free_gib=0)
    return FakeActions(
        Settings(home=tmp_path, is_space=True, limits=limits), step_seconds=30.0, num_steps=5
    )


@pytest.mark.parametrize(
    ("visitor", "may"),
    [
        (HER, True),
        (replace(HER, scope="openid read-repos"), False),
        (replace(HER, name=""), False),
        (ANONYMOUS, False),
        (THIS_MACHINE, False),
    ],
)
def test_only_a_sign_in_that_may_create_repositories_keeps_copies(
    space: FakeActions, visitor: Visitor, *, may: bool
) -> None:
    assert may_keep_copies(space.for_visitor(visitor)) is may


def test_a_run_with_a_copy_names_a_new_repository_of_the_visitor(
    space: FakeActions, hub: FakeHub
) -> None:
    her = space.for_visitor(HER)
    runs = [
        her.start(TrainingRequest(name=name), keeps_copy=True)
        for name in ("Kites", "Kites", "Owls")
    ]
    assert runs[0] == runs[1], "a double click"
    first, other = (run.request().mirror_to or "" for run in runs[1:])
    assert first.startswith("alice/kites-mirror-")
    assert other.startswith("alice/owls-mirror-")
    asked = TrainingRequest(name="Mine", mirror_to="alice/chosen")
    assert her.start(asked, keeps_copy=True).request().mirror_to == "alice/chosen"
    assert her.start(TrainingRequest(name="None")).request().mirror_to is None


def test_after_a_restart_that_lost_the_disk_the_runs_of_the_account_are_found_and_come_back(
    space: FakeActions, hub: FakeHub, tmp_path: Path
) -> None:
    lost = demo_run(tmp_path / "old disk")
    lost.events_file.write_bytes(b'{"seq":0}\n')
    push_copy(lost, "alice/copy", ALICE)
    her = space.for_visitor(HER)
    assert [copy.repo for copy in copies_not_here(her)] == ["alice/copy"]
    assert not copies_not_here(space.for_visitor(ANONYMOUS))
    back = her.fetch("alice/copy")
    assert back.id == lost.id
    assert her.run(back.id) == back
    assert not copies_not_here(her), "it is here now"
